"""Going back, stopping and resuming with stand-ins: the same batches, and an account that adds up or says what not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.chaos.campaign import task_of_chaos
from benchmarks.chaos.simulated_faults import survive
from demopsd_dist.config import load
from demopsd_dist.data.records import TrainBatch
from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.ledger import DropReason, Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.testing import StandInLearners, World, stand_in_roles
from demopsd_dist.training import loop
from demopsd_dist.training.loop import restore, train_with_recovery
from demopsd_dist.training.run import Run, RunState, Task
from demopsd_dist.util.errors import CollapseError, RunFolderError
from launch import audit as audit_command
from launch._task import run_of
from tests.driver.test_loop import DEMO, SMALL
from tests.driver.test_loop import task as task  # a fixture

WORDS = ("steps=8", "checkpoint.every_steps=3", "evaluation.at_start=false", "leakage.every_steps=0")


def names(batch: TrainBatch) -> list[tuple[str, bytes]]:
    """What a batch holds, and what the teacher was shown for it."""
    return sorted((item.id, item.example.privileged_tokens.tobytes()) for item in batch.items)


class Whole:
    """A run in its folder, gone through in one or several processes' worth of `go`."""

    def __init__(self, output: Path, task: Task, *words: str) -> None:
        self.config = load(DEMO, [*SMALL, *WORDS, f"output_dir={output}", *words])
        self.task = task
        self.folder = RunFolder.create(self.config)
        self.said = StringIO()
        self.learned: dict[int, list[tuple[str, bytes]]] = {}  # by step, the last time it was done

    def go(self, *, stop_after: int | None = None, resume: bool = False, **world: Any) -> RunState:
        roles = stand_in_roles(World(**world))
        learners = roles.learners
        assert isinstance(learners, StandInLearners)

        async def work(run: Run) -> RunState:
            state = RunState()
            if resume:
                state = await restore(run, run.checkpoints.newest_good(run.log.note))
            step = learners.step

            async def watched(batch: TrainBatch) -> Any:
                number = learners.steps + 1
                report = await step(batch)
                self.learned[number] = names(batch)
                if number == stop_after:
                    run.stop.ask()
                return report

            learners.step = watched  # type: ignore[method-assign]
            return await train_with_recovery(run, state, "resumed" if resume else "started")

        with RunLog(self.folder, self.config.steps, Console(file=self.said, width=200)) as log:
            run = run_of(self.config, roles, self.task, log)
            try:
                return asyncio.run(work(run))
            finally:
                run.ledger.close()

    def steps_on_record(self) -> list[int]:
        records = [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]
        return [record["step"] for record in records if "evaluation" not in record]

    def checkpoints(self) -> list[Checkpoint]:
        return Checkpoints(self.folder.checkpoints, keep=2).all()

    def account(self) -> AuditReport:
        return audit(self.folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Whole:
    run = Whole(tmp_path_factory.mktemp("undisturbed"), task)
    assert run.go() == RunState(step=8, samples=8 * 24)
    return run


def test_a_lost_learner_goes_back_to_the_checkpoint_and_learns_the_same(
    tmp_path: Path, task: Task, undisturbed: Whole
) -> None:
    run = Whole(tmp_path, task)
    assert run.go(lost_at_steps=[1, 5, 5, 7]) == RunState(step=8, samples=8 * 24)
    assert run.learned == undisturbed.learned
    assert run.steps_on_record() == list(range(1, 9))
    account = run.account()
    assert account.sound
    assert [from_step for _, from_step, _ in account.lives] == [0, 0, 3, 3, 6]
    assert account.undone == (1 + 2 + 2 + 1) * 24
    assert (account.trained, account.dropped) == (undisturbed.account().trained, undisturbed.account().dropped)
    undone = (run.folder.path / "metrics-undone.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in undone] == [1, 4, 5, 4, 5, 7]
    assert "goes on after step 3" in run.said.getvalue()


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_run_that_is_stopped_resumes_where_it_was(tmp_path: Path, task: Task, undisturbed: Whole, ahead: int) -> None:
    run = Whole(tmp_path, task, f"rollout.ahead={ahead}")
    assert run.go(stop_after=4).step == 4
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [4, 3]
    assert run.go(resume=True) == RunState(step=8, samples=8 * 24)
    assert run.account().sound
    assert run.steps_on_record() == list(range(1, 9))
    if not ahead:
        assert run.learned == undisturbed.learned


def test_a_torn_checkpoint_is_left_aside_loudly(tmp_path: Path, task: Task, undisturbed: Whole) -> None:
    run = Whole(tmp_path, task)
    run.go(stop_after=7)
    newest = run.checkpoints()[0]
    assert newest.step == 7
    file = newest.path / "learner" / "steps.json"
    file.write_bytes(file.read_bytes()[:-1] + b"9")
    assert not run.account().sound
    assert run.go(resume=True).step == 8
    assert "step-000007 is damaged and left aside: learner/steps.json is not as it was written" in run.said.getvalue()
    assert [from_step for _, from_step, _ in run.account().lives] == [0, 6]
    assert run.account().sound
    assert run.learned == undisturbed.learned


def test_a_doubled_sample_is_noticed(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = loop.packed

    def doubled(run: Run, rollouts: Any, **named: Any) -> TrainBatch:
        rollouts.scored.append(rollouts.scored[0])
        return packed(run, rollouts, **named)

    run = Whole(tmp_path, task, "steps=2")
    monkeypatch.setattr(loop, "packed", doubled)
    run.go()
    assert audit_command.main([str(run.folder.path)]) == 1
    said = capsys.readouterr().out
    name = run.learned[1][0][0]
    assert "FAULT: 2 samples were trained more than once: " in said
    assert name.partition("#")[0].split("/")[0] in said


def test_a_lost_sample_is_noticed(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was scored, and the learner never got it."""
    packed = loop.packed

    def short(run: Run, rollouts: Any, **named: Any) -> TrainBatch:
        del rollouts.scored[0]
        return packed(run, rollouts, **named)

    run = Whole(tmp_path, task, "steps=2")
    monkeypatch.setattr(loop, "packed", short)
    run.go()
    (fault,) = run.account().faults
    assert fault.what == "samples are lost: neither trained nor dropped"
    assert len(fault.names) == 2


def test_a_step_that_is_done_twice_is_noticed(tmp_path: Path, task: Task) -> None:
    run = Whole(tmp_path, task, "steps=2")
    run.go()
    with sqlite3.connect(run.folder.ledger) as ledger:
        ledger.execute("INSERT INTO steps SELECT NULL, life, step, samples, ended FROM steps WHERE step = 1")
    faults = {fault.what: fault.names for fault in run.account().faults}
    assert faults["steps were done more than once"] == ["1"]
    assert any("ledger disagree" in what for what in faults)


def test_a_sample_dropped_without_a_reason_is_noticed(tmp_path: Path, task: Task) -> None:
    run = Whole(tmp_path, task, "steps=1")
    run.go()
    with sqlite3.connect(run.folder.ledger) as ledger:
        ledger.execute(
            "INSERT INTO events SELECT NULL, life, step, 'dropped', prompt, sample, NULL, NULL, NULL, NULL, NULL "
            "FROM events WHERE event = 'trained' LIMIT 1"
        )
    whats = {fault.what for fault in run.account().faults}
    assert "samples were both trained and dropped" in whats
    assert "samples were dropped without a known reason" in whats


def test_the_ledger_is_only_added_to(tmp_path: Path, task: Task) -> None:
    run = Whole(tmp_path, task, "steps=1")
    run.go()
    with sqlite3.connect(run.folder.ledger) as ledger:
        for change in ("DELETE FROM events", "UPDATE events SET event = 'trained'", "DELETE FROM steps"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                ledger.execute(change)


def test_what_was_asked_for_is_on_disk_before_it_is_sampled(tmp_path: Path, task: Task) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.begin(0, "started")
    ledger.issued(1, task.train[:2], 4)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as other:
        (count,) = other.execute("SELECT count(*) FROM events WHERE event = 'issued'").fetchone()
    assert count == 8
    ledger.dropped(1, [(task.train[0].id, 0)], DropReason.late)
    ledger.close()


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Whole(tmp_path, task)
    saved = StandInLearners.save

    async def full(self: StandInLearners, folder: Path) -> None:
        if self.steps > 3:
            raise OSError(28, "No space left on device")
        await saved(self, folder)

    monkeypatch.setattr(StandInLearners, "save", full)
    with pytest.raises(RunFolderError, match=r"step-000006 could not be written: .*No space left"):
        run.go()
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["step-000003"]
    monkeypatch.undo()
    assert run.go(resume=True).step == 8
    assert run.account().sound


def test_dozens_of_random_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    steps, made = 40, task_of_chaos()  # about 45 faults would strike: chance alone hardly leaves 10 of 25 over
    calm = survive(0, seed=-1, task=made, output=tmp_path, steps=steps)
    assert calm.account.sound
    for seed in (100, 101):
        found = survive(25, seed, made, tmp_path, steps, ahead=seed % 2)
        assert found.struck.total() > 15
        damaged = [fault for fault in found.account.faults if fault.what.startswith("checkpoint is damaged")]
        assert found.account.faults == damaged, "nothing but what a fault tore and no resume has met since"
        assert len(damaged) <= found.struck["torn checkpoint"]
        assert found.account.again > 0
        assert found.learned == calm.learned


def test_the_alarm_takes_the_run_back_with_a_smaller_learning_rate(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 5 on the reward falls out of its band until the learning rate is a quarter: back to the checkpoint
    before, twice, and then on. A third time would end the run."""
    factors: list[tuple[int, float]] = []
    reported = loop.step_metrics

    def collapsing(step: Any, state: RunState) -> dict[str, float]:
        factor = factors[-1][1]
        return reported(step, state) | ({"rollout/reward_mean": 0.0} if state.step >= 5 and factor > limit else {})

    packed = loop.packed

    def noted(run: Run, rollouts: Any, **named: Any) -> TrainBatch:
        batch = packed(run, rollouts, **named)
        factors.append((len(factors), batch.learning_rate_factor))
        return batch

    monkeypatch.setattr(loop, "step_metrics", collapsing)
    monkeypatch.setattr(loop, "packed", noted)
    words = ("alarm.reward=[0.01, null]", "alarm.after_steps=2", "alarm.action=rollback", "alarm.max_rollbacks=2")
    limit = 0.3
    run = Whole(tmp_path / "once", task, *words)
    assert run.go().step == 8
    assert [from_step for _, from_step, _ in run.account().lives] == [0, 3, 3]
    assert run.account().sound
    assert sorted({factor for _, factor in factors}) == [0.25, 0.5, 1.0]
    assert (
        "went back: alarm after step 6: rollout/reward_mean=0 is below alarm.reward=[0.01, null]" in run.said.getvalue()
    )
    limit = 0.0
    with pytest.raises(CollapseError, match=r"gone back alarm.max_rollbacks=2 times"):
        Whole(tmp_path / "again", task, *words).go()
