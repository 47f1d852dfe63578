"""Recorded responses of evaluations, by the driver with stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.training.evaluation_splits import evaluation_splits
from demopsd_dist.training.run import Task
from tests.driver.test_loop import DEMO, DriverRun
from tests.driver.test_loop import task as task  # a fixture


def test_responses_of_evaluations_are_recorded(tmp_path: Path, task: Task) -> None:
    """The first questions of test and ood at every evaluation; not those that begin with an answer; none with 0."""
    words = ("steps=2", "samples.evaluation_questions=3", "evaluation.early_answer_samples=2")
    run = DriverRun(tmp_path / "three", task, *words)
    folder = RunFolder(tmp_path / "three" / "demo").evaluations
    names = [f"step-{step:06d}-{split}" for step in (0, 2) for split in ("ood", "test")]
    assert [path.stem for path in samples.files(folder)] == names
    rows = samples.read(folder / "step-000002-test.parquet")
    assert [row["prompt_id"] for row in rows] == [prompt.question.id for prompt in task.test[:3]]
    for row in rows:
        assert row["step"] == 2
        assert len(row["texts"]) == len(row["answers"]) == len(row["rewards"]) == 8
        assert {
            answer == row["expected"] for answer, reward in zip(row["answers"], row["rewards"], strict=True) if reward
        } <= {True}
    assert sum(sum(row["rewards"]) for row in rows) > 0
    assert run.summary["evaluation"]["test"]["questions"] == 8
    samples.remove_evaluations_after(folder, 1)
    assert [path.stem for path in samples.files(folder)] == names[:2]
    DriverRun(tmp_path / "none", task, "steps=0", "samples.evaluation_questions=0")
    assert not RunFolder(tmp_path / "none" / "demo").evaluations.exists()


@pytest.mark.parametrize(("reward", "opening", "longest"), [("boxed", "\\boxed{", 128), ("gsm8k", "####", 8)])
def test_an_early_answer_in_the_form_of_the_reward(task: Task, reward: str, opening: str, longest: int) -> None:
    words = [f"reward={reward}", "evaluation.early_answer_samples=2", "rollout.max_response_tokens=128"]
    splits = {split.name: split for split in evaluation_splits(load(DEMO, words), task)}
    assert list(splits) == ["test", "ood", "early/test", "early/train"]
    for name, split in splits.items():
        is_early = name.startswith("early/")
        assert (split.form.opening if split.form else None) == (opening if is_early else None)
        assert split.sampling.max_response_tokens == (longest if is_early else 128)
        assert split.sampling.samples == (2 if is_early else load(DEMO, words).evaluation.samples)


def test_the_training_questions_of_the_early_answer_come_from_all_parts_of_the_data(task: Task) -> None:
    splits = evaluation_splits(load(DEMO, ["evaluation.early_answer_samples=2"]), task)
    (early,) = [split for split in splits if split.name == "early/train"]
    ids = [prompt.question.id for prompt in task.train]
    chosen = [ids.index(prompt.question.id) for prompt in early.prompts]
    assert len(chosen) == len(task.test) < len(ids)
    assert chosen == sorted(set(chosen))
    assert chosen[-1] >= len(ids) - len(ids) / len(chosen) - 1
