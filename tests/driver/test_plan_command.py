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


def test_the_settings_of_the_fastest_split_can_be_used_in_place_of_shares(capsys: pytest.CaptureFixture[str]) -> None:
    """Overrides that the plan prints for several GPUs are accepted over a config with fractions of one GPU."""
    shared = str(DEMO.with_name("one_gpu.yaml"))
    assert main([shared, "--gpus", "4xh100"]) == 0
    (line,) = re.findall(r"Settings of the fastest split: (.*?): ", " ".join(capsys.readouterr().out.splitlines()))
    words = [word for word in line.split() if re.match(r"[a-z_]+\.[a-z_]+=", word)]
    assert {"rollout.gpus_per_worker=1", "teacher.gpus_per_worker=1", "learner.gpus_per_worker=1"} <= set(words)
    config = load(shared, words)
    assert not config.rollout.sleep
    assert config.rollout.num_workers + config.teacher.num_workers + config.learner.num_workers == 4


def test_a_role_with_a_gpu_of_its_own_leaves_the_others_less(capsys: pytest.CaptureFixture[str]) -> None:
    """Rollout on one GPU, teacher and learner in halves of the other: that one is what must hold both."""
    words = ["model.path=models/Qwen3-4B", "learner.num_workers=1", "rollout.num_workers=1", "teacher.num_workers=1"]
    shares = ["teacher.gpus_per_worker=0.5", "learner.gpus_per_worker=0.5", "rollout.gpus_per_worker=1"]
    main([NODE, "--gpus", "2xh100", *words, *shares])
    output = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"DOES NOT FIT: together 1 x teacher [\d.]+ \+ 1 x learner [\d.]+ need [\d.]+ GiB per h100", output
    )


def test_threads_are_no_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for threads in ([], ["rollout.threads=2", "learner.threads=4", "teacher.threads=2"]):
        assert main([NODE, "--gpus", "8xh100", *threads]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("words", [["rollout.ahead=15"], ["rollout.ahead=40"]])
def test_a_plan_of_a_run_far_ahead(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([NODE, "--gpus", "8xh100", *words]) == 0
    assert f"ahead {words[0].partition('=')[2]}" in capsys.readouterr().out
    assert main([NODE, "--gpus", "8xh100", "--hours", "0", "--price", "2"]) == 2
    assert "--hours 0 must be above 0." in capsys.readouterr().err


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
