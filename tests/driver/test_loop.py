"""The training loop with stand-ins for the roles: order of the calls, staleness, recorded metrics, errors."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demopsd_dist.config import Config, RewardErrors, load
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import Reward
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record import replay_batch
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.checkpoints import Checkpoint
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.ledger import DropReason
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.sinks import open_sinks
from demopsd_dist.testing import StandInLearners, World, stand_in_roles
from demopsd_dist.training.pipelining import open_prefetch_queue
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState, Task
from demopsd_dist.training.step_prompts import prompts_of_step
from demopsd_dist.util.errors import CollapseError, RewardError, WorkerError
from launch._task import build_task, compose_run

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = ["rollout.prompts_per_step=6", "rollout.group_size=4", "data.minisci_test_size=8", "data.minisci_train_size=40"]


@pytest.fixture(scope="module")
def task() -> Task:
    config = load(DEMO, SMALL)
    return build_task(config, MODEL_DIR, load_data(config.data).questions)[0]


class DriverRun:
    """A training run with stand-ins, from start to end, with a sound ledger."""

    def __init__(self, folder: Path, task: Task, *words: str, **world: Any) -> None:
        self.config: Config = load(DEMO, [*SMALL, f"output_dir={folder}", *words])
        self.world = World(**world)
        self.roles = stand_in_roles(self.world)
        self.folder = RunFolder.create(self.config)
        self.console = StringIO()
        console = Console(file=self.console, width=200)
        with RunLog(self.folder, self.config.steps, console, open_sinks(self.config, self.folder)) as log:
            run = compose_run(self.config, self.roles, task, log)
            try:
                self.state = asyncio.run(train_with_recovery(run, RunState(), "started"))
            finally:
                run.ledger.close()
            self.summary = log.summary()
        assert audit(self.folder).faults == []

    @property
    def batches(self) -> list:
        assert isinstance(self.roles.learners, StandInLearners)
        return self.roles.learners.batches

    def log_of_steps(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]
        return [line for line in lines if "evaluation" not in line]

    def ages(self) -> list[int]:
        """For each step the age of its oldest rollout, in weight versions."""
        return [
            step - min(item.rollout.oldest_version for item in batch.items) for step, batch in enumerate(self.batches)
        ]


def test_on_policy_order_of_events(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=3", "leakage.every_steps=2")
    evaluations = [("sample", 0), ("sample", 0)]  # test and ood
    expected = [("publish", 0), *evaluations]
    for step in range(3):
        probe = [("score", step)] if step % 2 == 0 else []
        expected += [("sample", step), ("score", step), *probe, ("step", step), ("publish", step + 1)]
    assert run.world.diary[: len(expected)] == expected
    assert run.world.diary[len(expected) :] == [("sample", 3), ("sample", 3)]
    assert run.state == RunState(step=3, samples=3 * 24)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_rollout_is_older_than_ahead_and_the_bound_is_used(tmp_path: Path, task: Task, ahead: int) -> None:
    run = DriverRun(tmp_path, task, "steps=8", f"rollout.ahead={ahead}")
    assert max(run.ages()) == ahead
    assert all(age >= 0 for age in run.ages())
    sampled = [who for who, _ in run.world.diary].count("sample")
    assert sampled == 8 + 4, "no batch beyond the last step, and two evaluations of two sets"


def test_a_step_without_examples_moves_no_weights(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=2", skill=0.0)
    assert [batch.token_count for batch in run.batches] == [0, 0]
    assert run.world.unchanged == [1, 2]
    assert run.summary["active_fraction"] == 0
    assert run.console.getvalue().count("nothing to learn from") == 2
    assert "example: question " in run.console.getvalue()


@pytest.mark.parametrize("ahead", [0, 2])
def test_every_step_learns_its_own_prompts(tmp_path: Path, task: Task, ahead: int) -> None:
    run = DriverRun(tmp_path, task, "steps=9", f"rollout.ahead={ahead}")
    for step, batch in enumerate(run.batches):
        own = {prompt.id for prompt in prompts_of_step(task.train, run.config, step)}
        learned = {item.prompt.id for item in batch.items}
        assert learned
        assert learned <= own


def test_grpo_learns_from_every_group_with_a_signal_and_needs_no_teacher(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=3", "method=grpo", skill=0.2)
    sizes = [len(batch.items) for batch in run.batches]
    assert 0 < min(sizes) < 24, "some groups of four agree: those cost nothing"
    for batch in run.batches:
        items = batch.items
        assert batch.size.sequences == 24, "and still count in the mean"
        assert {item.reference_logp_TA is None and item.teacher_logp_TA is None for item in items} == {True}
        assert {len(item.example.privileged_tokens) for item in items} == {0}
        assert all(item.example.advantage for item in items)


@pytest.mark.parametrize("skill", [0.05, 0.4])
def test_dynamic_sampling_fills_a_step_with_groups_that_differ(tmp_path: Path, task: Task, skill: float) -> None:
    """A step of 6 of 40 questions replaces those without a signal, in at most four rounds, with questions new to it."""
    run = DriverRun(tmp_path, task, "steps=3", "method=grpo", "grpo.variant=dapo", skill=skill)
    sampled = [who for who, _ in run.world.diary].count("sample") - 4
    assert 3 < sampled <= 12
    records = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    sampled_counts = [int(record["rollout/samples"]) for record in records if "evaluation" not in record]
    assert all(count > 24 for count in sampled_counts) if skill < 0.1 else max(sampled_counts) > 24
    for batch, count in zip(run.batches, sampled_counts, strict=True):
        items = batch.items
        groups = {item.prompt.id for item in items}
        assert len(items) == 4 * len(groups) == batch.size.sequences
        assert len(groups) == 6 or count >= 4 * (6 + 3), "too few in all rounds"
        assert len({item.id for item in items}) == len(items)
    again = DriverRun(tmp_path, task, "steps=3", "method=grpo", "grpo.variant=dapo", skill=skill)
    assert [batch.token_count for batch in again.batches] == [batch.token_count for batch in run.batches]


def test_an_epoch_visits_different_prompts_in_an_order_of_its_own(task: Task) -> None:
    config = load(DEMO, SMALL)  # 40 questions, 6 a step: six steps an epoch, four questions left out of each
    epochs = [
        [prompt.id for s in range(6) for prompt in prompts_of_step(task.train, config, 6 * e + s)] for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 36
    assert epochs[0] != epochs[1] != epochs[2]
    assert {name for epoch in epochs for name in epoch} == {prompt.id for prompt in task.train}
    assert [p.id for p in prompts_of_step(task.train, config, 6)] == epochs[1][:6]


def test_metrics_console_and_summary_of_a_run(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=4", "evaluation.every_steps=2")
    records = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    assert [record["step"] for record in records if "evaluation" not in record] == [1, 2, 3, 4]
    assert [(r["step"], r["evaluation"]) for r in records if "evaluation" in r] == [
        (step, split) for step in (0, 2, 4) for split in ("test", "ood")
    ]
    first = records[2]
    assert first["policy/age_steps_max"] == 0
    assert first["rollout/samples"] == 24
    assert 0 < first["rollout/learned_tokens"] < first["rollout/tokens"]
    assert first["time/learn_s"] >= 0
    assert run.summary["accuracy_after"]["average"] > run.summary["accuracy_before"]["average"]
    assert set(run.summary["accuracy_before"]) == {"physics", "chemistry", "biology", "materials", "average", "ood"}
    assert 0 < run.summary["active_fraction"] <= 1
    text = run.console.getvalue()
    assert text.count("step ") >= 4
    assert "4/4  reward" in text


def test_a_failing_role_ends_the_run_and_leaves_nothing_in_flight(tmp_path: Path, task: Task) -> None:
    with pytest.raises(WorkerError, match=r"lost 1 times without a step beyond 2 .*died as requested"):
        DriverRun(tmp_path, task, "steps=8", "rollout.ahead=3", "limits.restarts=0", lost_at_steps=[2])
    steps = [
        r
        for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()
        if "evaluation" not in (r := json.loads(line))
    ]
    assert len(steps) == 2, "what was done before is on record"


def test_a_reward_that_raises_ends_the_run_and_shows_the_sample(tmp_path: Path, task: Task) -> None:
    def broken(response: str, question: Question) -> float:
        raise KeyError("no such unit")

    with pytest.raises(RewardError, match=r"reward=mine.broken failed at .*KeyError.*expected answer .*response of"):
        DriverRun(tmp_path, replace(task, reward=Reward("mine.broken", broken, lambda response: response)), "steps=2")


def test_responses_that_the_reward_fails_on_are_left_out_and_counted(tmp_path: Path, task: Task) -> None:
    def picky(response: str, question: Question) -> float:
        if "no idea" in response and len(question.text) % 2:
            raise KeyError("no such unit")
        return float("no idea" not in response)

    reward = Reward("mine.picky", picky, lambda response: response, RewardErrors.drop)
    run = DriverRun(tmp_path, replace(task, reward=reward), "steps=3", "reward=mine.picky", "reward_errors=drop")
    steps = run.log_of_steps()
    assert all(step["rollout/reward_errors"] + step["rollout/samples"] == 24 for step in steps)
    missing = int(sum(step["rollout/reward_errors"] for step in steps))
    assert missing > 0
    assert "rewards of step 1 are missing, the first because reward=mine.picky failed" in run.console.getvalue()
    assert audit(run.folder).dropped[DropReason.no_reward.value] == missing
    assert run.summary["evaluation"]["test"]["reward_errors"] > 0


def test_a_reward_that_fails_on_all_responses_of_a_step_ends_the_run(tmp_path: Path, task: Task) -> None:
    def broken(response: str, question: Question) -> float:
        raise KeyError("no such unit")

    reward = Reward("mine.broken", broken, lambda response: response, RewardErrors.drop)
    message = r"All 24 rewards of step 1 are missing, the first because reward=mine.broken failed .*KeyError"
    with pytest.raises(RewardError, match=message):
        DriverRun(tmp_path, replace(task, reward=reward), "steps=2", "reward=mine.broken", "reward_errors=drop")


def test_feedback_alone_makes_an_example(tmp_path: Path, task: Task) -> None:
    """No response is right, so there is no sibling to show; half of the responses get feedback from the reward."""

    def strict(response: str, question: Question) -> RewardResult:
        return RewardResult(0.0, "give a number" if len(response) % 2 else None)

    strict_task = replace(task, reward=Reward("tests.strict", strict, lambda response: response))
    words = ("steps=2", "reward=tests.strict", "privileged.feedback=true")
    batches = DriverRun(tmp_path, strict_task, *words).batches
    examples = [item.example for batch in batches for item in batch.items]
    assert examples
    for example in examples:
        assert len(example.rollout.text) % 2
        assert "give a number" in task.prompts.tokenizer.decode(example.privileged_tokens)
        assert "Correct solution" not in task.prompts.tokenizer.decode(example.privileged_tokens)


def test_an_evaluation_alone_and_the_early_answer(tmp_path: Path, task: Task) -> None:
    """A run without steps evaluates test, ood, and test and train with the beginning of an answer in the prompt."""
    run = DriverRun(tmp_path, task, "steps=0", "evaluation.at_start=false", "evaluation.early_answer_samples=2")
    assert [who for who, _ in run.world.diary] == ["publish", *["sample"] * 4]
    evaluations = run.summary["evaluation"]
    assert list(evaluations) == ["test", "ood", "early/test", "early/train"]
    assert [evaluations[split]["samples"] for split in evaluations] == [8, 8, 2, 2]
    assert evaluations["early/train"]["questions"] == evaluations["test"]["questions"] == 8
    assert evaluations["early/test"]["example"]["response"].startswith("<answer>")
    assert "accuracy_before" not in run.summary


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    config = load(DEMO, [f"output_dir={tmp_path}"])
    assert [RunFolder.create(config).path.name for _ in range(3)] == ["demo", "demo-2", "demo-3"]
    assert load(tmp_path / "demo-2" / "config.yaml") == config


def test_prefetching_bounds_the_batches_in_flight() -> None:
    started: list[int] = []

    async def produce(step: int) -> int:
        started.append(step)
        await asyncio.sleep(0)
        return step

    async def drive() -> None:
        async with open_prefetch_queue(produce, first_step=5, last_step=9, ahead=1) as queue:
            for step in range(5, 9):
                assert await queue.next_batch() == step
                assert max(started) <= step + 1
                queue.start_next()
        assert started == [5, 6, 7, 8]

    asyncio.run(drive())


def test_prefetching_raises_errors_and_cancels_the_rest() -> None:
    ended: list[int] = []

    async def produce(step: int) -> int:
        if step == 0:
            await asyncio.sleep(0)
            raise ValueError("no rollouts")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(step)
            raise
        return step

    async def drive() -> None:
        async with open_prefetch_queue(produce, first_step=0, last_step=4, ahead=2) as queue:
            await queue.next_batch()

    with pytest.raises(ValueError, match="no rollouts"):
        asyncio.run(drive())
    assert ended == [1, 2]


def test_a_late_group_is_dropped_and_counted(task: Task, tmp_path: Path) -> None:
    """One group never finishes: the step continues without it after rollout.late_group_s."""
    late = task.train[0].id
    words = ("steps=6", "rollout.prompts_per_step=10", "rollout.late_group_s=0.05")
    run = DriverRun(tmp_path, task, *words, never_done={late})
    requested = [[prompt.id for prompt in prompts_of_step(task.train, run.config, step)] for step in range(6)]
    assert sum(late in ids for ids in requested), "the late group was requested"
    for ids, batch, line in zip(requested, run.batches, run.log_of_steps(), strict=True):
        assert late not in {item.prompt.id for item in batch.items}
        assert line["rollout/groups"] == 10 - (late in ids)


def test_a_collapse_is_reported_or_ends_the_run(tmp_path: Path, task: Task) -> None:
    """No response is right: the reward stays below its band."""
    words = ("steps=5", "alarm.reward=[0.1, null]", "alarm.after_steps=2")
    warned = DriverRun(tmp_path, task, *words, skill=0.0)
    assert warned.state.step == 5
    warnings = [line for line in warned.console.getvalue().splitlines() if line.startswith("warning: alarm")]
    assert [line.partition(":")[2].partition(":")[0] for line in warnings] == [
        " alarm after step 2",
        " alarm after step 4",
    ]
    with pytest.raises(
        CollapseError, match=r"alarm after step 2: rollout/reward_mean=0 is below alarm.reward=\[0.1, null\]"
    ):
        DriverRun(tmp_path, task, *words, "alarm.action=stop", skill=0.0)
    healthy = DriverRun(tmp_path, task, *words, "alarm.action=stop", skill=0.9)
    assert healthy.state.step == 5


def test_a_replay_batch_is_recorded_where_a_checkpoint_precedes_it(tmp_path: Path, task: Task) -> None:
    """It is removed with the checkpoint. The batch of step 1 stays, because that step starts from the model folder."""
    run = DriverRun(tmp_path, task, "steps=7", "checkpoint.every_steps=2", "checkpoint.keep=2")
    assert replay_batch.recorded_steps(run.folder.replay) == [1, 7], "the checkpoints of steps 6 and 7 remain"
    batch = replay_batch.read(run.folder.replay, 7)
    recorded_ids = [example.id for example in batch.examples]
    assert recorded_ids == sorted((item.id for item in run.batches[6].items), key=recorded_ids.index)
    assert sorted(index for call in batch.score_calls for index in call) == list(range(len(batch.examples)))
    assert batch.record.digests["gradient"] == {"0": "of step 7"}
    assert batch.record.checkpoint == Checkpoint(run.folder.checkpoints / "step-000006").digest()
    requested = [batch.digest_request is not None for batch in run.batches]
    assert requested == [True, False, True, False, True, False, True]
    assert not DriverRun(tmp_path, task, "steps=2", "checkpoint.replayable=false").folder.replay.exists()


def test_a_batch_is_in_the_order_of_its_prompts_whatever_finishes_first(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=1")
    batch = replay_batch.read(run.folder.replay, 1)
    prompt_ids = [prompt.id for prompt in prompts_of_step(task.train, run.config, 0)]
    order = [(prompt_ids.index(example.prompt.id), example.rollout.sample) for example in batch.examples]
    assert order == sorted(order)
    scored_order = [index for call in batch.score_calls for index in call]
    assert scored_order != sorted(scored_order), "the groups finished in another order"


def test_a_profiled_step_has_a_timeline(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=3", "profile.steps=[2]")
    assert [path.name for path in run.folder.path.glob("trace-*")] == ["trace-step-000002.json"]
    trace = json.loads(run.folder.trace(2).read_text())
    names = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert names == {1: "driver", 2: "learner 0"}
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {"wait_for_rollouts", "sample", "support", "score", "learn"} <= {e["name"] for e in spans if e["pid"] == 1}
    assert all(event["ts"] < trace["otherData"]["step_s"] * 1e6 for event in spans)
    assert not run.folder.operations(2).exists(), "nothing else was asked for"


def test_operations_are_recorded_from_the_sampling_of_a_step_to_its_publish(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=3", "profile.steps=[1,3]", "profile.operations=true")
    recordings = [entry for entry in run.world.diary if entry[0] in ("start_operations", "operations")]
    assert recordings == [("start_operations", 0), ("operations", 1), ("start_operations", 2), ("operations", 3)]
    assert sorted(path.name for path in run.folder.path.glob("operations-*")) == [
        "operations-step-000001",
        "operations-step-000003",
    ]
    assert "## learner 0, 2.00 s" in (run.folder.operations(3) / "operations.md").read_text()


def test_a_recording_of_operations_that_a_loss_broke_off_is_dropped(tmp_path: Path, task: Task) -> None:
    """The rollout workers outlive the loss, and go on recording until they are asked to stop."""
    words = ["steps=4", "checkpoint.every_steps=1", "profile.steps=[2,3]", "profile.operations=true"]
    run = DriverRun(tmp_path, task, *words, lost_at_steps=[2])
    recordings = [entry for entry in run.world.diary if entry[0].endswith("operations")]
    assert recordings == [
        ("start_operations", 1),
        ("operations", 2),
        ("start_operations", 2),
        ("stop_operations", 2),  # the learner died in step 3
        ("start_operations", 2),
        ("operations", 3),
    ]
    assert len(list(run.folder.path.glob("operations-*"))) == 2
