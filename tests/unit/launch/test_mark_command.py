"""Marking of recorded responses through the command line: scores, answers read, totals by reason, and bad lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.mark import main
from tests.browser.recorded_runs import a_run

ROOT = Path(__file__).parents[3]
QUESTION = {"question": "3*4?", "answer": "12"}
RESPONSES = {
    "so <answer>12.0</answer>": ("1", "right"),
    "<answer>1\x1b[2J3</answer>": ("0", "wrong: another answer"),
    "it is 12": ("0", "wrong: no answer that reward=answer reads"),
    "<think>maybe <answer>12</answer>": ("0", "wrong: an answer inside the thought alone"),
    "": ("0", "wrong: an empty response"),
    "<think>hm</think> <answer>12</answer>": ("1", "right"),
}
Mark = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Mark:
    def run(records: list[Any] | Path, *words: str) -> tuple[int, list[str], str]:
        path = records if isinstance(records, Path) else tmp_path / "responses.jsonl"
        if isinstance(records, list):
            path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
        code = main([str(path), *words])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return run


def test_each_response_has_its_score_its_answer_and_its_reason(mark: Mark) -> None:
    code, lines, errors = mark([QUESTION | {"response": response} for response in RESPONSES])
    assert (code, errors) == (0, "")
    for number, (line, (score, reason)) in enumerate(zip(lines, RESPONSES.values(), strict=False), start=1):
        assert re.fullmatch(rf" +{number}  {score} +read .*   expected '12'   {re.escape(reason)}", line), line
    assert "read '12.0'" in lines[0]
    assert r"read '1\x1b[2J3'" in lines[1], "a response does not steer the terminal"
    assert lines[2].split()[2:4] == ["read", "-"]
    assert lines[len(RESPONSES)] == "6 responses, reward=answer, mean score 0.333"
    *totalled, note = lines[len(RESPONSES) + 1 :]
    totals = dict(line.split(maxsplit=1)[::-1] for line in totalled)
    assert totals == {"right": "2"} | {reason: "1" for _, reason in RESPONSES.values() if reason != "right"}
    unread = "note: 3 responses have no answer that reward=answer reads; "
    assert note == f"{unread}reward=gsm8k would find 1 of these 3 right"


def test_scores_alone_are_one_a_line(mark: Mark) -> None:
    records = [QUESTION | {"response": response} for response in RESPONSES]
    assert mark(records, "--scores") == (0, [score for score, _ in RESPONSES.values()], "")
    assert mark([QUESTION | {"response": r"\boxed{3 \cdot 4}"}], "reward=math", "--scores")[1] == ["1"]
    assert mark([QUESTION | {"response": r"\boxed{3 \cdot 4}"}], "reward=boxed", "--scores")[1] == ["0"]


def test_questions_are_read_as_the_data_reader_reads_them(mark: Mark) -> None:
    options = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "response": "The answer is B."}
    assert mark([options], "reward=letter")[1][0].endswith("read 'B'   expected 'B'   right")
    gsm8k = {"question": "6*4?", "answer": "four trays\n#### 24", "response": "24 rolls"}
    assert mark([gsm8k], "reward=gsm8k")[1][0].endswith("read '24'   expected '24'   right")
    named = {"q": "Which?", "target": {"value": "B"}, "response": "B"}
    words = ("data.fields.text=q", "data.fields.answer=target.value", "reward=letter")
    assert mark([named], *words, "--scores")[1] == ["1"]


def test_samples_of_a_run_are_read_as_they_are(mark: Mark, tmp_path: Path) -> None:
    a_run(tmp_path / "runs", steps=1, responses=4)
    samples = next((tmp_path / "runs").rglob("step-*.parquet"))
    code, lines, _ = mark(samples)
    assert code == 0
    assert len([line for line in lines if "   expected '" in line]) == 4


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (QUESTION, "line 2: the record has no text in 'response'."),
        (QUESTION | {"response": 3}, "line 2: the record has no text in 'response'."),
        ({"question": "3*4?", "response": "12"}, "line 2: the record has no 'answer'"),
        ('{"question": ', "line 2: not valid JSON"),
        ("[1]", "line 2: a JSON object is needed, not list."),
        (QUESTION | {"response": "", "choices": ["a", "b"]}, "line 2: the record has options in 'choices'"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(mark: Mark, record: Any, message: str) -> None:
    code, _, errors = mark([QUESTION | {"response": "12"}, record], "--scores")
    assert code == 2
    assert re.fullmatch(r"error: FILE=\S+responses\.jsonl, [^\n]+\n", errors), errors
    assert message in errors


def test_a_refused_question_names_its_line(mark: Mark) -> None:
    filling = {"question": "q", "choices": {}, "answerKey": "", "type": "filling", "answer": "x", "domain": "Physics"}
    code, _, errors = mark([filling | {"response": "x"}], "data.format=sciknoweval")
    assert code == 2
    assert "line 1: the question cannot be marked: " in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=4"], "steps=4 has no effect on the score of a response; these have: reward, "),
        (["reward=anwser"], "Did you mean answer?"),
        (["data.format=recods"], "data.format"),
    ],
)
def test_settings_without_an_effect_and_misspelt_ones_are_refused(mark: Mark, words: list[str], message: str) -> None:
    code, lines, errors = mark([QUESTION | {"response": "12"}], *words)
    assert (code, lines) == (2, [])
    assert message in errors


def test_a_response_that_was_cut_has_its_reward_or_none(mark: Mark) -> None:
    records: list[Any] = [{**QUESTION, "response": "<answer>12</answer>", "truncated": cut} for cut in (True, False)]
    assert mark(records, "--scores")[1] == ["1", "1"]
    assert mark(records, "--scores", "truncated_reward=zero")[1] == ["0", "1"]
    lines = mark(records, "truncated_reward=zero")[1]
    assert lines[0].endswith("wrong: cut at its limit (truncated_reward=zero)")


def test_a_file_without_records_or_none_at_all_is_refused(mark: Mark, tmp_path: Path) -> None:
    assert mark([])[0] == 2
    code, _, errors = mark(tmp_path / "nowhere.jsonl")
    assert code == 2
    assert "there is no such file. Give a .jsonl, .json, .parquet or .csv file, or `hf:owner/name`." in errors


def test_the_own_reward_of_the_rewards_page_is_found_where_the_page_says(tmp_path: Path) -> None:
    """The page's module, in the folder where the command is started, and in a folder of PYTHONPATH."""
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# my_package\.py.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_package.py").write_text(code + SCALARS)
    records = [QUESTION | {"response": response} for response in ("so 12", "12 km", "1 km", "1")]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, records)))

    def marked(folder: Path, python_path: Path, *words: str) -> list[str]:
        command = [sys.executable, "-m", "launch.mark", str(tmp_path / "responses.jsonl"), *words]
        environment = os.environ | {"PYTHONPATH": str(python_path)}
        found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return found.stdout.splitlines()

    assert marked(tmp_path, ROOT, "reward=my_package.my_reward", "--scores") == ["1", "1", "0", "0"]
    lines = marked(ROOT, tmp_path, "reward=my_package.my_reward")
    assert lines[2].endswith("wrong   'The answer has the wrong unit.'")
    scores = marked(tmp_path, ROOT, "reward=my_package.scalars", "reward_errors=drop", "--scores")
    assert scores == ["0.5", "1", "nan", "0.25"]


SCALARS = """
import numpy as np

def scalars(response, question):
    return {"so 12": np.float32(0.5), "12 km": np.True_, "1 km": np.array([1.0]), "1": np.array(0.25)}[response]
"""
