"""A run that is killed, driver and all, and resumed ends bit for bit where an undisturbed one ends."""

from __future__ import annotations

import ctypes
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.common.run_processes import marked
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.folder import RunFolder
from launch import scale
from tests.real.runs.test_endings import Launched, check_what_it_left, secrets_of
from tests.real.runs.test_endings import launch as launch  # a fixture

ALIKE = (
    "deterministic=true",
    "steps=6",
    "checkpoint.every_steps=3",
    "rollout.prompts_per_step=4",
    "evaluation.at_start=false",
    "evaluation.every_steps=3",
    "data.ood=null",
    "leakage.every_steps=3",
)
TIMES = ("time/", "perf/", "_per_s")


def metrics_without_times(folder: Path) -> list[dict[str, float]]:
    """Metrics that a run recorded, without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(t in key for t in TIMES)} for line in lines]


@contextmanager
def reaped_by_nobody() -> Iterator[None]:
    """Processes as in a container whose first process is not an init: the pid of an orphan that ended stays taken."""
    prctl, subreaper = ctypes.CDLL(None).prctl, 36
    prctl(subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(subreaper, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("stage", "learners", "samplers"),
    [(3, 1, 1), *(pytest.param(*shape, marks=pytest.mark.long) for shape in [(1, 1, 2), (2, 2, 1), (3, 2, 1)])],
)
def test_killed_and_resumed_is_the_same_bit_for_bit(
    stage: int, learners: int, samplers: int, launch: Callable[..., Launched], tmp_path: Path
) -> None:
    ranks = (f"learner.num_workers={learners}", f"rollout.num_workers={samplers}")
    words = (*ALIKE, f"learner.zero_stage={stage}", *ranks)
    calm = launch(*words)
    secrets = secrets_of(calm)
    assert calm.end(within_s=400) == 0, calm.log.read_text()
    check_what_it_left(calm, secrets)
    struck = launch(*words)
    moment = random.Random(stage)
    struck.wait_until("a step after the checkpoint", struck.has_said("step 4/6"))
    time.sleep(moment.random())
    if stage == 3:  # the driver alone: what is left ends by itself
        with reaped_by_nobody():
            struck.process.kill()
            assert struck.end() == -signal.SIGKILL
    else:
        for process in marked(struck.mark):
            process.kill()
        assert struck.end() == -signal.SIGKILL
    resumed = struck.again("--resume")
    assert resumed.end(within_s=400) == 0, resumed.log.read_text()
    assert "resumed after step 3" in resumed.log.read_text()
    assert metrics_without_times(resumed.folder) == metrics_without_times(calm.folder)
    one, other = (load_file(run.folder / "student" / "model.safetensors") for run in (calm, resumed))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    account = audit(RunFolder(resumed.folder))
    assert account.faults == []
    assert (account.steps, account.issued) == (6, 6 * 4 * 8)
    assert [step for _, step, _ in account.lives] == [0, 3]


@pytest.mark.long  # its parts are held by tests/real/roles/test_learner_checkpoint.py and test_endings.py
def test_interrupted_saves_and_resumes_with_fewer_learners_and_more_workers(launch: Callable[..., Launched]) -> None:
    """SIGTERM saves where the run is; another cut of the roles goes on; what would change the student is refused."""
    words = ("steps=9000", "checkpoint.every_steps=0", "evaluation.at_start=false", "data.ood=null")
    run = launch(*words, "rollout.num_workers=1", "learner.num_workers=2", "learner.zero_stage=3")
    run.wait_until("the second step", run.has_said("step    2/9000"))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130
    said = run.log.read_text()
    assert "stopped after step " in said
    step = audit(RunFolder(run.folder)).steps
    last = f"steps={step + 3}"
    fewer = (*words[1:], last, "rollout.num_workers=2", "learner.num_workers=1", "learner.zero_stage=1")
    shared = ("teacher.num_workers=4", "teacher.shards=2", "teacher.cpus_per_worker=0.1")
    refused = run.again("--resume", *fewer, *shared, "learner.learning_rate=1e-6")
    assert refused.end(within_s=60) == 2
    assert "other settings, which change what is learned: learner.learning_rate: " in refused.log.read_text()
    again = run.again("--resume", *fewer, *shared)
    assert again.end(within_s=400) == 0, again.log.read_text()
    said = again.log.read_text()
    assert f"resumed after step {step}" in said
    assert "changed    learner.zero_stage: 3 -> 1" in said
    assert audit(RunFolder(run.folder)).faults == []


@pytest.mark.long
def test_workers_come_and_go_while_it_trains(launch: Callable[..., Launched]) -> None:
    run = launch("steps=9000", "rollout.num_workers=1", "evaluation.at_start=false", "learner.num_workers=1")
    run.wait_until("the first step", run.has_said("step    1/9000"))
    for count in (2, 1):
        assert scale.main([str(run.folder), "--rollout-workers", str(count)]) == 0
        run.wait_until(f"{count} rollout workers", partial(run.has_actors, "RolloutWorker", count))
        run.wait_until("two more steps", run.has_said_more("samples/s", 2))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130
    assert "warning" not in run.log.read_text()
    assert audit(RunFolder(run.folder)).faults == []
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {record["rollout/workers"] for record in records} == {1.0, 2.0}
    assert scale.main([str(run.folder), "--rollout-workers", "2"]) == 2, "nobody runs there any more"
