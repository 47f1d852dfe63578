"""Tests of `launch.plan`, and of the planner's combination of stages against the real driver."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.common.timed_runs import task_of
from benchmarks.plan.simulated_steps import DEMO, FIVE_GPUS, simulated_step
from demopsd_dist.config import load
from demopsd_dist.planning.roofline import STAGES
from demopsd_dist.planning.step_time import step_seconds
from demopsd_dist.planning.workload import Split
from demopsd_dist.training.run import Task
from launch.plan import main
from tests.unit.planning.example_workloads import example_workload

NODE = str(DEMO.with_name("node_8gpu.yaml"))
EVENLY = [(i + 1) / 8 for i in range(8)]


@pytest.fixture(scope="module")
def task() -> Task:
    return task_of(load(DEMO, ["data.minisci_train_size=256"]))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("on_publish", ["wait", "keep"])
@pytest.mark.parametrize("done", [[1.0] * 8, EVENLY], ids=["at once", "evenly"])
@pytest.mark.parametrize("stages", [(10, 1, 4, 6, 1, 0.1), (5, 1, 2, 12, 1, 0.1), (4, 1, 14, 6, 2, 0.1)])
def test_stages_are_combined_as_the_driver_does(
    stages: tuple[float, ...], done: list[float], on_publish: str, ahead: int, task: Task
) -> None:
    """Step time as planned, and of the real driver with roles that sleep, on a clock that skips waits."""
    seconds = dict(zip(STAGES, stages, strict=True))
    split = Split(2, 1, 2, ahead)
    planned = step_seconds(example_workload(f"rollout.on_publish={on_publish}"), split, FIVE_GPUS, seconds, tuple(done))
    simulated = simulated_step(split, seconds, done, task, waits=on_publish == "wait")
    assert planned == pytest.approx(simulated, rel=0.03)


def test_a_plan_has_memory_time_the_best_split_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([NODE, "--gpus", "8xh100", "--hours", "12", "--price", "2"]) == 0
    output = capsys.readouterr().out
    for text in (
        "4.02e9 parameters, bfloat16",
        "2 rollout, 2 teacher, 4 learner, ahead 0:",
        "96 device-hours, cost 192 at 2 per device-hour",
        "KV cache",
        "for comparison: an unfused loss would hold ",
        "Splits of these devices, the fastest first:",
        "Settings of the fastest split: rollout.num_workers=",
        "device efficiencies: assumed, not measured",
        "bfloat16 (known by its name: there is no models/Qwen3-4B",
        "  fits       the largest worker, ",
    ):
        assert text in output


def test_roles_that_share_a_gpu_fit_together(capsys: pytest.CaptureFixture[str]) -> None:
    shared = str(DEMO.with_name("one_gpu.yaml"))
    assert main([shared, "--gpus", "1xl40s", "model.path=models/Qwen3-0.6B"]) == 0
    assert re.search(r"fits +all roles together take \d+\.\d of the 45\.0 GiB of one l40s", capsys.readouterr().out)
    assert main([shared, "--gpus", "1xl40s", "model.path=models/Qwen3-1.7B"]) == 1
    output = capsys.readouterr().out
    assert "fits " not in output
    assert re.search(r"DOES NOT FIT: together .* GiB per l40s; it has 45\.0", output)


def test_a_config_that_does_not_fit_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([NODE, "--gpus", "8xh100", "rollout.tensor_parallel=8"]) == 1, "no split fits it"
    assert main([NODE, "--gpus", "8xl40s", "learner.zero_stage=1", "learner.activation_checkpointing=false"]) == 1
    output = capsys.readouterr().out
    assert "DOES NOT FIT: learner needs" in output
    assert main([NODE, "--gpus", "4xh100"]) == 1
    assert "DOES NOT FIT: the roles claim 8 devices; there are 4." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([NODE, "--gpus", "8xb300"], "no rates are known for b300"),
        ([str(DEMO), "--gpus", "8xh100"], "the config is for CPU"),
        ([NODE, "--gpus", "8xh100", "model.path=models/unknown"], "not a model whose shape is known: "),
        ([str(DEMO), "--gpus", "2xcpu"], "A cpu is known only from a calibration: add --calibrate FILE.json."),
        ([NODE, "--gpus", "8xh100", "--calibrate", "none.json"], "--calibrate none.json: No such file or directory."),
        ([NODE, "--gpus", "8xh100", "--right", "1.5"], "--right 1.5 must be from 0 to 1."),
        ([NODE, "--gpus", "8xh100", "--response-tokens", "9000"], "--response-tokens 9000 must be from 0 to 4096."),
    ],
)
def test_wrong_input_is_refused_in_a_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(words) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
