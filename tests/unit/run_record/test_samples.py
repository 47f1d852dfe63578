"""Recorded samples: their choice, and files that are read back as written, by pandas too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import RewardedGroup
from demopsd_dist.data.records import RewardResult, ScoredExample, TokenRecord, TrainingExample
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.models.token_texts import TokenTexts
from demopsd_dist.run_record import samples
from tests.unit.run_record.sample_rows import prompt, rollout

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
TOKENIZER = byte_tokenizer()


def config(*words: str) -> Config:
    return load(DEMO, words)


def ids_of(text: str) -> np.ndarray:
    return np.asarray(TOKENIZER(text, add_special_tokens=False)["input_ids"], np.int32)


def test_the_choice_has_the_requested_size_and_is_repeatable() -> None:
    rollouts = [rollout(prompt(f"q{i}"), sample) for i in range(20) for sample in range(8)]
    once = samples.choose_recorded(config(), 3, rollouts)
    assert len(set(once)) == 16
    assert samples.choose_recorded(config(), 3, rollouts) == once
    assert samples.choose_recorded(config(), 4, rollouts) != once
    assert samples.choose_recorded(config("seed=1"), 3, rollouts) != once
    assert len(samples.choose_recorded(config("samples.responses=500"), 3, rollouts)) == 160
    due = [step for step in range(7) if samples.choose_recorded(config("samples.every_steps=3"), step, rollouts)]
    assert due == [0, 3, 6]
    assert samples.choose_recorded(config("samples.every_steps=0"), 0, rollouts) == []


@pytest.mark.parametrize("text", ["plain <answer>12</answer>", "5 °C – „über“ 🙂", "🙂°"])
def test_texts_of_tokens_concatenate_to_the_text(text: str) -> None:
    ids = ids_of(text)
    texts = TokenTexts(TOKENIZER)
    pieces = texts.texts_of_sequence(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text == texts.text(ids)


def test_an_incomplete_character_has_no_text() -> None:
    assert TokenTexts(TOKENIZER).texts_of_sequence(ids_of("a🙂")[:3]) == ["a", "\ufffd", ""]


def step_rows(cfg: Config) -> list[samples.Row]:
    question = prompt("q", answer="7")
    right = rollout(question, 0, "<answer>7</answer>", length=6, version=2)
    wrong = rollout(question, 1, "<answer>8</answer>", length=4, version=2)
    values = np.log(np.full((4, 3), 1 / 3, np.float32))
    example = TrainingExample(wrong, 0.0, -0.5, ids_of("see 7"), source="dataset")
    scored = ScoredExample(example, np.zeros((4, 2), np.int32), values, values)
    table = TokenRecord(
        entropy_T=np.arange(3, dtype=np.float32),
        loss_T=np.zeros(3, np.float32),
        distributions={"demopsd/alpha": np.full(3, 0.1, np.float32)},
        candidate_TC=np.array([[65, 66]] * 3, np.int32),
        student_logp_TC=values[:3, :2],
        reference_logp_TC=None,
        teacher_logp_TC=values[:3, :2],
        target_logp_TC=values[:3, :2],
    )
    group = RewardedGroup([right, wrong], [RewardResult(1.0), RewardResult(0.0, "no unit")])
    return samples.sample_rows(cfg, 5, ["q#1", "q#0"], [group], [scored], {"q#1": table}, TOKENIZER)


def test_the_sibling_that_the_teacher_saw_is_found_by_its_text() -> None:
    """Whole or cut, not by a text of the data set, and never the response itself; equal texts together."""
    question = prompt("q", answer="7")
    texts = ["first: 7", "second, longer: 7", "wrong: 8", "first: 7"]
    rollouts = [rollout(question, sample, text, length=3) for sample, text in enumerate(texts)]
    group = RewardedGroup(rollouts, [RewardResult(float("7" in text)) for text in texts])

    def shown(own: int, view: str | None, source: str | None) -> list[int]:
        return samples._group_columns(group, rollouts[own], view, source)["shown_samples"]

    assert shown(2, "see second, longer: 7 and solve", "sibling") == [1]
    assert shown(2, "see first: 7 and solve", "sibling_and_dataset") == [0, 3]
    assert shown(0, "see first: 7 and solve", "sibling") == [3]
    assert shown(2, "see wrong: 8", "sibling") == []
    assert shown(2, "see first: 7", "dataset") == []
    assert shown(2, None, None) == []


def test_a_file_is_read_back_as_written(tmp_path: Path) -> None:
    rows = step_rows(config("samples.tokens=3"))
    path = samples.write(tmp_path / "samples", 5, rows)
    assert path.name == "step-000005.parquet"
    assert samples.files(tmp_path / "samples") == [path], "nothing unfinished beside it"
    wrong, right = samples.read(path)
    assert (wrong["prompt_id"], wrong["sample"], wrong["reward"], wrong["feedback"]) == ("q", 1, 0.0, "no unit")
    assert wrong["privileged_view"] == "see 7"
    for row in (wrong, right):
        assert (row["group_samples"], row["group_rewards"]) == ([0, 1], [1.0, 0.0])
        assert row["group_texts"] == ["<answer>7</answer>", "<answer>8</answer>"]
        assert row["shown_samples"] == []
    assert (wrong["solution_source"], right["solution_source"]) == ("dataset", None)
    assert wrong["learned"]
    assert wrong["token_ids"] == [20, 21, 22]
    assert wrong["versions"] == [2, 2, 2]
    assert wrong["alpha"] == pytest.approx([0.1] * 3)
    assert wrong["disagreement"] is None
    assert wrong["reference_logp"] is None
    assert np.exp(wrong["teacher_logp"]) == pytest.approx(np.full((3, 2), 1 / 3))
    assert wrong["candidate_texts"] == [TokenTexts(TOKENIZER).texts_of_tokens([65, 66])] * 3
    assert not right["learned"]
    assert right["alpha"] is None
    assert right["advantage"] is None
    assert right["token_ids"] == [20, 21, 22]
    assert set(wrong) == set(samples.COLUMNS)


def test_pandas_reads_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    samples.write(tmp_path, 5, step_rows(config()))
    samples.write(tmp_path, 6, step_rows(config()))
    frame = pandas.read_parquet(tmp_path)
    assert frame.groupby("learned").reward.mean().to_dict() == {False: 1.0, True: 0.0}
    assert len(frame[["token_texts", "versions"]].explode(["token_texts", "versions"])) == 20
