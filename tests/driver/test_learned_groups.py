"""Groups that a step can learn from, with stand-ins for the roles: sources of solutions and refilled groups."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record import samples
from demopsd_dist.training.run import Task
from launch._task import build_task
from tests.driver.test_loop import DEMO, SMALL, DriverRun


def test_a_solution_of_the_data_teaches_without_a_right_sibling(tmp_path: Path) -> None:
    """A student that is never right: with siblings it learns nothing, with the data's solutions from all responses."""
    words = ["method=opsd", "opsd.top_k=4", "privileged.source=dataset"]
    config = load(DEMO, [*SMALL, *words])
    with_solutions = build_task(config, MODEL_DIR, load_data(config.data).questions)[0]
    run = DriverRun(tmp_path, with_solutions, "steps=2", *words, skill=0.0)
    for batch in run.batches:
        assert len(batch.items) == 24
        for item in batch.items:
            view = with_solutions.prompts.tokenizer.decode(item.example.privileged_tokens)
            assert view.count(item.example.question.solution) == 1
            assert item.example.reward == 0.0
    for record in run.log_of_steps():
        assert record["privileged/dataset_fraction"] == record["rollout/learned_fraction"] == 1.0
        assert record["privileged/cut_fraction"] == 0.0
        assert "privileged/sibling_fraction" not in record
    with sqlite3.connect(run.folder.ledger) as ledger:
        counts = ledger.execute("SELECT reason, count(*) FROM events WHERE event = 'scored' GROUP BY reason").fetchall()
    assert counts == [("dataset", 48)]
    rows = [row for path in samples.files(run.folder.samples) for row in samples.read(path)]
    assert {row["solution_source"] for row in rows} == {"dataset"}
    siblings = DriverRun(tmp_path, with_solutions, "steps=1", "method=sdpo", skill=0.0)
    assert siblings.batches[0].items == []


@pytest.fixture(scope="module")
def task() -> Task:
    config = load(DEMO, SMALL)
    return build_task(config, MODEL_DIR, load_data(config.data).questions)[0]


@pytest.mark.parametrize("method", ["demopsd", "sdpo"])
def test_groups_without_a_solution_to_show_are_refilled(tmp_path: Path, task: Task, method: str) -> None:
    """A step of 6 of 40 questions of which few have a right response: up to three rounds of fresh questions."""
    words = ["steps=3", f"method={method}", f"{method}.sampling_rounds=3"]
    run = DriverRun(tmp_path, task, *words, skill=0.08)
    records = run.log_of_steps()
    rounds = [who for who, _ in run.world.diary].count("sample") - 4  # two evaluations of two splits
    assert 3 < rounds <= 9
    assert all(record["rollout/groups"] > 6 for record in records)
    assert max(record["rollout/groups"] for record in records) <= 18
    for batch, record in zip(run.batches, records, strict=True):
        groups = {item.prompt.id for item in batch.items}
        assert 0 < len(groups) <= 6
        assert record["rollout/groups_learnable_fraction"] >= len(groups) / record["rollout/groups"]
        assert len({item.id for item in batch.items}) == len(batch.items)
        if len(groups) < 6:
            assert record["rollout/groups_learnable_fraction"] == len(groups) / record["rollout/groups"], "all are used"
    once = DriverRun(tmp_path / "once", task, "steps=3", f"method={method}", skill=0.08)
    assert [record["rollout/groups"] for record in once.log_of_steps()] == [6.0] * 3, "the default has one round"
    refilled, plain = (sum(len(batch.items) for batch in each.batches) for each in (run, once))
    assert refilled > plain
    again = DriverRun(tmp_path / "again", task, *words, skill=0.08)
    assert [[item.id for item in batch.items] for batch in again.batches] == [
        [item.id for item in batch.items] for batch in run.batches
    ]


def test_where_there_is_always_something_to_show_nothing_is_refilled(tmp_path: Path, task: Task) -> None:
    words = ["steps=2", "privileged.source=answer_only", "demopsd.sampling_rounds=4"]
    run = DriverRun(tmp_path, task, *words, skill=0.0)
    for record in run.log_of_steps():
        assert record["rollout/groups"] == 6.0
        assert record["rollout/groups_learnable_fraction"] == record["privileged/answer_only_fraction"] == 1.0


def test_the_share_of_learnable_groups_is_in_the_line_of_a_step(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=2", skill=0.1)
    lines = [line for line in run.console.getvalue().splitlines() if line.startswith("step ")]
    for line, record, batch in zip(lines, run.log_of_steps(), run.batches, strict=True):
        share = len({item.prompt.id for item in batch.items}) / 6
        assert record["rollout/groups_learnable_fraction"] == share
        assert f"  groups {share:.0%}" in line or not batch.items
    assert any(record["rollout/groups_learnable_fraction"] < 1 for record in run.log_of_steps())
    policy = DriverRun(tmp_path / "policy", task, "steps=2", "method=grpo", skill=0.3)
    for record in policy.log_of_steps():
        assert record["rollout/groups_learnable_fraction"] == record["rollout/groups_differing_fraction"]


def test_a_run_without_any_reward_says_so_once(tmp_path: Path, task: Task) -> None:
    start = "warning: no reward in the first"
    run = DriverRun(tmp_path, task, "steps=3", skill=0.0)
    text = " ".join(run.console.getvalue().split())  # the console wraps lines
    before, found, after = text.partition(f"{start} 2 steps. Likely cause, from step 2: ")
    assert found
    assert "step 2/3" in before
    assert "step 3/3" not in before, "after the second step"
    assert after.startswith("24 of 24 have an answer, another than the expected one")
    assert "24 responses: 0 without an answer (0 of them cut), 24 with a different one response to train/" in after
    assert ": <answer>no idea</answer> expected answer: " in after
    assert start not in after
    short = DriverRun(tmp_path / "short", task, "steps=1", skill=0.0)
    assert short.console.getvalue().count(f"{start} step.") == 1
    assert start not in DriverRun(tmp_path / "some", task, "steps=3", skill=0.1).console.getvalue()
