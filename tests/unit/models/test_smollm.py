"""Questions and reward of SmolLM2's run, and the command that makes its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demopsd_dist.data.records import Question
from demopsd_dist.models.smollm.__main__ import main, pip_command
from demopsd_dist.models.smollm.word_problems import draw_problems, last_number
from demopsd_dist.models.smollm.word_problems import main as write_questions


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("Ann has 3 + 4 = 7 eggs.", 1.0),
        ("7.0", 1.0),
        ("The 7 eggs cost 8.", 0.0),
        ("Seven.", 0.0),
        ("", 0.0),
        ("-7", 0.0),
        ("1,007", 0.0),
    ],
)
def test_the_last_number_counts(response: str, reward: float) -> None:
    assert last_number(response, Question("1", "?", "7", "sum")) == reward


def test_questions_are_the_same_again_and_none_is_in_both_files(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        assert write_questions([str(tmp_path / folder), "--train", "50", "--test", "20"]) == 0
    names = ("word-problems-train.jsonl", "word-problems-test.jsonl")
    train, test = ((tmp_path / "one" / name).read_text() for name in names)
    assert train == (tmp_path / "other" / names[0]).read_text()
    records = [json.loads(line) for line in (train + test).splitlines()]
    assert len({record["prompt"] for record in records}) == 70
    assert {record["field"] for record in records} == {"sum", "difference", "product", "share"}


def test_answers_follow_from_the_numbers() -> None:
    for problem in draw_problems(200, seed=1):
        first, second, *_ = [int(word) for word in problem.text.split() if word.isdigit()]
        expected = {
            "sum": first + second,
            "difference": first - second,
            "product": first * second,
            "share": first // second,
        }
        assert problem.answer == expected[problem.family]


def test_an_existing_folder_is_not_overwritten_and_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} exists already" in error or " ".join(pip_command()) in error
    assert error.count("\n") == 1
