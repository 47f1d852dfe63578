"""Processes that die or hang in the middle of a step: the run goes on, and its ledger adds up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from psutil import Process, wait_procs

from benchmarks.chaos.real_faults import PlantedFault, run_with_planted_faults
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import WorkerError
from tests.real.conftest import engine_processes
from tests.real.runs.test_endings import Launched
from tests.real.runs.test_endings import launch as launch  # a fixture
from workers.rollout.worker import RolloutWorker


class FailingRollouts(RolloutWorker):
    """A rollout worker that cannot sample, and reports how many processes its engine has."""

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        raise RuntimeError(f"{len(engine_processes(Process()))} out of luck")


@pytest.mark.long
@pytest.mark.usefixtures("ray_here")
def test_each_role_dies_and_the_run_goes_on(tmp_path: Path) -> None:
    """Each stage sees a death, each role dies, with it a teacher who shares its weights with another; one worker hangs.
    What was learned is what an undisturbed run learns, whose teacher has them for itself."""
    blows = [
        PlantedFault("sample", "rollout"),
        PlantedFault("score", "teacher"),
        PlantedFault("publish_weights", "rollout"),
        PlantedFault("learn", "learner"),
        PlantedFault("recover", "rollout"),
        PlantedFault("sample", "rollout", signal.SIGSTOP),
        PlantedFault("checkpoint", "learner"),
    ]
    words = ("teacher.num_workers=2", "teacher.shards=2", "limits.silence_s=15")  # a slow machine is no hang
    found = run_with_planted_faults(blows, *words, output=tmp_path / "fire")
    assert found.audit.faults == []
    assert found.audit.steps == len(found.metrics) == 3 * (len(blows) + 2)
    assert found.audit.resampled > 0, "some prompts were asked for again"
    assert found.console.count("It is replaced, and its work done again.") == 4
    assert "is back after" in found.console
    assert found.console.count("are restarted") == 3
    assert "hangs: no answer within limits.silence_s=15 s" in found.console
    calm = run_with_planted_faults([], "steps=6", output=tmp_path / "calm")
    for fire, still in zip(found.metrics, calm.metrics, strict=False):
        assert fire["rollout/reward_mean"] == still["rollout/reward_mean"]
        assert fire["learner/loss"] == pytest.approx(still["learner/loss"], abs=1e-4)


@pytest.mark.long
@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_fails_again_and_again_stops_the_run_with_its_history(tmp_path: Path) -> None:
    words = ("limits.restarts=1", "rollout.num_workers=1", "rollout.tensor_parallel=2", "steps=1")
    before = engine_processes()
    with pytest.raises(WorkerError, match=r"(?s)rollout 0 failed 2 times \(limits.restarts=1\): .*2 out of luck"):
        run_with_planted_faults([], *words, output=tmp_path, rollout_class=FailingRollouts)
    wait_procs([process for process in engine_processes() if process not in before], timeout=10)
    assert [process for process in engine_processes() if process not in before] == [], "they ended with the worker"


def test_a_learner_that_dies_at_the_start_is_started_once_more(launch: Callable[..., Launched]) -> None:
    run = launch("steps=1", "rollout.num_workers=1", "learner.num_workers=1", "evaluation.every_steps=0")
    run.wait_until("a learner", lambda: run.actors("LearnerWorker"))
    run.actors("LearnerWorker")[0].kill()
    assert run.end(within_s=200) == 0, run.log.read_text()
    said = run.log.read_text()
    assert said.count("Learners and teacher are started once more.") == 1
    assert "warning: lost: learner 0 died during this call: the model." in said
    assert "tells of no crash: it was killed from outside" in said
    assert audit(RunFolder(run.folder)).faults == []
