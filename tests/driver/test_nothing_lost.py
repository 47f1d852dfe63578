"""Recovery, stopping and resuming with stand-ins: the same batches are trained, and the ledger has every sample."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.chaos.simulated_faults import fault_task, run_with_faults
from demopsd_dist.config import load
from demopsd_dist.data.records import StepReport, TrainBatch
from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.ledger import DropReason, Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.run_inputs import write_inputs
from demopsd_dist.testing import StandInLearners, World, stand_in_roles
from demopsd_dist.training.checkpointing import restore
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState, StageHook, Task, no_hook
from demopsd_dist.training.step_batch import StepBatch
from demopsd_dist.util.errors import CheckpointError, CollapseError, RunFolderError, WorkerError
from launch import audit as audit_command
from launch._task import compose_run
from tests.driver.test_loop import DEMO, SMALL
from tests.driver.test_loop import task as task  # a fixture

WORDS = ("steps=8", "checkpoint.every_steps=3", "evaluation.at_start=false", "leakage.every_steps=0")


def content_of(batch: TrainBatch) -> list[tuple[str, bytes]]:
    """Rollout ids and privileged prompts of a batch."""
    return sorted((item.id, item.example.privileged_tokens.tobytes()) for item in batch.items)


class RecordedRun:
    """A run in its folder. Each call of `go` is one process that starts or resumes it."""

    def __init__(self, output: Path, task: Task, *words: str) -> None:
        self.config = load(DEMO, [*SMALL, *WORDS, f"output_dir={output}", *words])
        self.task = task
        self.folder = RunFolder.create(self.config)
        self.console = StringIO()
        self.learned: dict[int, list[tuple[str, bytes]]] = {}  # by step, the last time it was done
        self.learning_rate_factors: list[float] = []  # of each step in order, repeated steps included

    def go(
        self, *, stop_after: int | None = None, resume: bool = False, fault: StageHook = no_hook, **world: Any
    ) -> RunState:
        """Train until the end or the step `stop_after`, with a fault planted at the stages of the steps."""
        roles = stand_in_roles(World(**world))
        learners = roles.learners
        assert isinstance(learners, StandInLearners)

        async def on_stage(stage: str, step: int, content: Any) -> None:
            if stage == "record":
                self.learned[step] = content_of(learners.batches[-1])
                self.learning_rate_factors.append(learners.batches[-1].learning_rate_factor)
                if step == stop_after:
                    run.stop.request()
            await fault(stage, step, content)

        async def work() -> RunState:
            state = RunState()
            if resume:
                state = await restore(run, run.checkpoints.newest_good(run.log.note))
            return await train_with_recovery(run, state, "resumed" if resume else "started")

        with RunLog(self.folder, self.config.steps, Console(file=self.console, width=200)) as log:
            run = compose_run(self.config, roles, self.task, log, on_stage)
            try:
                return asyncio.run(work())
            finally:
                run.ledger.close()

    def steps_on_record(self) -> list[int]:
        records = [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]
        return [record["step"] for record in records if "evaluation" not in record]

    def checkpoints(self) -> list[Checkpoint]:
        return Checkpoints(self.folder.checkpoints, keep=2).all()

    def audit(self) -> AuditReport:
        return audit(self.folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, task: Task) -> RecordedRun:
    run = RecordedRun(tmp_path_factory.mktemp("undisturbed"), task)
    assert run.go() == RunState(step=8, samples=8 * 24)
    return run


def test_a_checkpoint_of_another_run_is_refused_as_such(tmp_path: Path, task: Task) -> None:
    one, other = RecordedRun(tmp_path / "one", task), RecordedRun(tmp_path / "other", task)
    for run in (one, other):
        write_inputs(run.folder, {})
        run.go(stop_after=3)
    (own,) = one.checkpoints()
    shutil.rmtree(own.path)
    shutil.copytree(other.checkpoints()[0].path, own.path)
    with pytest.raises(CheckpointError, match=rf"step-000003 is of another run: .* identity {other.folder.identity}"):
        one.go(resume=True)
    assert other.go(resume=True) == RunState(step=8, samples=8 * 24)


def test_a_lost_learner_goes_back_to_the_checkpoint_and_learns_the_same(
    tmp_path: Path, task: Task, undisturbed: RecordedRun
) -> None:
    run = RecordedRun(tmp_path, task)
    assert run.go(lost_at_steps=[1, 5, 5, 7]) == RunState(step=8, samples=8 * 24)
    assert run.learned == undisturbed.learned
    assert run.steps_on_record() == list(range(1, 9))
    report = run.audit()
    assert report.sound
    assert [from_step for _, from_step, _ in report.lives] == [0, 0, 3, 3, 6]
    assert report.undone == (1 + 2 + 2 + 1) * 24
    assert (report.trained, report.dropped) == (undisturbed.audit().trained, undisturbed.audit().dropped)
    undone = (run.folder.path / "metrics-undone.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in undone] == [1, 4, 5, 4, 5, 7]
    assert "continues after step 3" in run.console.getvalue()


def test_a_learner_that_is_lost_again_during_its_restart_counts_like_any_other_loss(
    tmp_path: Path, task: Task, undisturbed: RecordedRun
) -> None:
    run = RecordedRun(tmp_path / "survives", task)
    assert run.go(lost_at_steps=[5], lost_restarts=2) == RunState(step=8, samples=8 * 24)
    assert run.learned == undisturbed.learned
    assert [from_step for _, from_step, _ in run.audit().lives] == [0, 3]
    assert run.audit().sound
    gives_up = RecordedRun(tmp_path / "gives up", task)
    with pytest.raises(WorkerError, match=r"lost 4 times without a step beyond 5 \(limits.restarts=3\)"):
        gives_up.go(lost_at_steps=[5], lost_restarts=3)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_run_that_is_stopped_resumes_where_it_was(
    tmp_path: Path, task: Task, undisturbed: RecordedRun, ahead: int
) -> None:
    run = RecordedRun(tmp_path, task, f"rollout.ahead={ahead}")
    assert run.go(stop_after=4).step == 4
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [4, 3]
    assert run.go(resume=True) == RunState(step=8, samples=8 * 24)
    assert run.audit().sound
    assert run.steps_on_record() == list(range(1, 9))
    if not ahead:
        assert run.learned == undisturbed.learned


def test_a_torn_checkpoint_is_left_aside_loudly(tmp_path: Path, task: Task, undisturbed: RecordedRun) -> None:
    run = RecordedRun(tmp_path, task)
    run.go(stop_after=7)
    newest = run.checkpoints()[0]
    assert newest.step == 7
    file = newest.path / "learner" / "steps.json"
    file.write_bytes(file.read_bytes()[:-1] + b"9")
    assert not run.audit().sound
    assert run.go(resume=True).step == 8
    assert (
        "step-000007 is damaged and skipped: learner/steps.json differs from what was written" in run.console.getvalue()
    )
    assert [from_step for _, from_step, _ in run.audit().lives] == [0, 6]
    assert run.audit().sound
    assert run.learned == undisturbed.learned


async def double_a_sample(stage: str, step: int, batch: Any) -> None:
    if stage == "learn":
        assert isinstance(batch, StepBatch)
        batch.scored.append(batch.scored[0])


def test_a_doubled_sample_is_noticed(tmp_path: Path, task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    run = RecordedRun(tmp_path, task, "steps=2")
    run.go(fault=double_a_sample)
    assert audit_command.main([str(run.folder.path)]) == 1
    printed = capsys.readouterr().out
    name = run.learned[1][0][0]
    assert "FAULT: 2 samples were trained more than once: " in printed
    assert name.partition("#")[0].split("/")[0] in printed


async def lose_a_sample(stage: str, step: int, batch: Any) -> None:
    if stage == "learn":
        assert isinstance(batch, StepBatch)
        del batch.scored[0]


def test_a_lost_sample_is_noticed(tmp_path: Path, task: Task) -> None:
    """A sample that was scored, and that the learner never got."""
    run = RecordedRun(tmp_path, task, "steps=2")
    run.go(fault=lose_a_sample)
    (fault,) = run.audit().faults
    assert fault.description == "samples are lost: neither trained nor dropped"
    assert len(fault.names) == 2


def test_a_step_that_is_done_twice_is_noticed(tmp_path: Path, task: Task) -> None:
    run = RecordedRun(tmp_path, task, "steps=2")
    run.go()
    with sqlite3.connect(run.folder.ledger) as ledger:
        ledger.execute("INSERT INTO steps SELECT NULL, life, step, samples, ended FROM steps WHERE step = 1")
    faults = {fault.description: fault.names for fault in run.audit().faults}
    assert faults["steps were done more than once"] == ["1"]
    assert any("ledger disagree" in description for description in faults)


def test_a_sample_dropped_without_a_reason_is_noticed(tmp_path: Path, task: Task) -> None:
    run = RecordedRun(tmp_path, task, "steps=1")
    run.go()
    with sqlite3.connect(run.folder.ledger) as ledger:
        ledger.execute(
            "INSERT INTO events SELECT NULL, life, step, 'dropped', prompt, sample, NULL, NULL, NULL, NULL, NULL "
            "FROM events WHERE event = 'trained' LIMIT 1"
        )
    descriptions = {fault.description for fault in run.audit().faults}
    assert "samples were both trained and dropped" in descriptions
    assert "samples were dropped without a known reason" in descriptions


def test_the_ledger_is_append_only(tmp_path: Path, task: Task) -> None:
    run = RecordedRun(tmp_path, task, "steps=1")
    run.go()
    with sqlite3.connect(run.folder.ledger) as ledger:
        for change in ("DELETE FROM events", "UPDATE events SET event = 'trained'", "DELETE FROM steps"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                ledger.execute(change)


def test_requested_samples_are_on_disk_before_they_are_sampled(tmp_path: Path, task: Task) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.begin(0, "started")
    ledger.issued(1, task.train[:2], 4)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as other:
        (count,) = other.execute("SELECT count(*) FROM events WHERE event = 'issued'").fetchone()
    assert count == 8
    ledger.dropped(1, [(task.train[0].id, 0)], DropReason.late)
    ledger.close()


async def fill_the_disk(stage: str, step: int, folder: Any) -> None:
    if stage == "checkpoint" and step > 3:
        raise OSError(28, "No space left on device")


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path, task: Task) -> None:
    run = RecordedRun(tmp_path, task)
    with pytest.raises(RunFolderError, match=r"step-000006 could not be written: .*No space left"):
        run.go(fault=fill_the_disk)
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["step-000003"]
    assert run.go(resume=True).step == 8
    assert run.audit().sound


def test_dozens_of_random_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    steps, task = 40, fault_task()  # about 45 faults are expected: at least 15 of 25 strike almost surely
    calm = run_with_faults(0, seed=-1, task=task, output=tmp_path, steps=steps)
    assert calm.audit.sound
    for seed in (100, 101):
        found = run_with_faults(25, seed, task, tmp_path, steps, ahead=seed % 2)
        assert found.planted.total() > 15
        damaged = [fault for fault in found.audit.faults if fault.description.startswith("checkpoint is damaged")]
        assert found.audit.faults == damaged, "nothing but what a fault tore and no resume has met since"
        assert len(damaged) <= found.planted["torn checkpoint"]
        assert found.audit.resampled > 0
        assert found.learned == calm.learned


def test_a_collapse_takes_the_run_back_with_a_smaller_learning_rate(tmp_path: Path, task: Task) -> None:
    """From step 5 on the reward is below its band while the learning rate is above a limit. The run goes back to the
    checkpoint twice and then continues with a quarter of the learning rate; a third rollback would end it."""

    def collapse_above(limit: float, run: RecordedRun) -> StageHook:
        async def collapse(stage: str, step: int, report: Any) -> None:
            if stage == "record" and step >= 5 and run.learning_rate_factors[-1] > limit:
                assert isinstance(report, StepReport)
                report.metrics["rollout/reward_mean"] = 0.0

        return collapse

    words = ("alarm.reward=[0.01, null]", "alarm.after_steps=2", "alarm.action=rollback", "alarm.max_rollbacks=2")
    run = RecordedRun(tmp_path / "once", task, *words)
    assert run.go(fault=collapse_above(0.3, run)).step == 8
    assert [from_step for _, from_step, _ in run.audit().lives] == [0, 3, 3]
    assert run.audit().sound
    assert sorted(set(run.learning_rate_factors)) == [0.25, 0.5, 1.0]
    assert (
        "went back: alarm after step 6: rollout/reward_mean=0 is below alarm.reward=[0.01, null]"
        in run.console.getvalue()
    )
    again = RecordedRun(tmp_path / "again", task, *words)
    with pytest.raises(CollapseError, match=r"gone back alarm.max_rollbacks=2 times"):
        again.go(fault=collapse_above(0.0, again))


def test_a_run_that_is_killed_after_a_rollback_keeps_its_smaller_learning_rate(tmp_path: Path, task: Task) -> None:
    """The checkpoint that it resumes from was written before the rollback."""

    async def collapse_then_killed(stage: str, step: int, report: Any) -> None:
        if stage == "record" and len(run.learning_rate_factors) > 6:
            raise KeyboardInterrupt
        if stage == "record" and step >= 5:
            report.metrics["rollout/reward_mean"] = 0.0

    words = ("alarm.reward=[0.01, null]", "alarm.after_steps=2", "alarm.action=rollback", "alarm.max_rollbacks=1")
    run = RecordedRun(tmp_path, task, *words)
    with pytest.raises(KeyboardInterrupt):
        run.go(fault=collapse_then_killed)
    assert run.learning_rate_factors == [1.0] * 6 + [0.5]
    assert run.go(resume=True).step == 8
    assert run.learning_rate_factors[7:] == [0.5] * 5
    assert "rollbacks so far: 1; the learning rate is multiplied by 0.5" in run.console.getvalue()


def test_steps_that_are_undone_do_not_count_as_outside_a_band(tmp_path: Path, task: Task) -> None:
    """Steps 4 and 5 have too small a reward, the learner is lost, and step 4 is the first in a row again."""

    async def low_until_lost(stage: str, step: int, report: Any) -> None:
        if stage == "record" and step in (4, 5) and len(run.learning_rate_factors) <= 6:
            report.metrics["rollout/reward_mean"] = 0.0

    words = ("alarm.reward=[0.01, null]", "alarm.after_steps=3", "alarm.action=stop")
    run = RecordedRun(tmp_path, task, *words)
    assert run.go(fault=low_until_lost, lost_at_steps=[6]).step == 8
