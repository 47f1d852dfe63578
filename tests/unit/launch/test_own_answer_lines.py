"""Own answers in the dry run: counts and an example with its line; data that nobody can answer right is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.train import main
from tests.unit.launch.test_data_shown import DEMO, SMALL, dry_run, write


def test_right_and_wrong_records_are_counted_with_the_first_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any(line.startswith("own answers 24 of 24 checked by reward=answer in ") for line in dry_run(capsys))
    records = [{"prompt": f"{i}+1?", "answer": i + 1} for i in range(9)]
    path = write(tmp_path / "a.jsonl", *records, {"prompt": "Metal?", "answer": "iron"})
    lines = dry_run(capsys, f"data.train={path}", "reward=gsm8k")
    assert any(line.startswith("own answers 26 of 26 checked") and line.endswith("1 wrong") for line in lines)
    assert (
        "warning: reward=gsm8k marks the expected answer of 1 of 10 train records wrong: no answer is read in it (1). "
        f"First: data.train={path}, line 10: the answer 'iron', written as '#### iron'. "
        "They stay in the data; mend or remove them, since no response can be right."
    ) in lines


def test_data_that_nobody_can_answer_right_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"prompt": f"{i}+1? Use \\boxed{{}}.", "answer": i + 1} for i in range(10)]
    path = write(tmp_path / "a.jsonl", *records)
    runs = tmp_path / "runs"
    for dry in ([], ["--dry-run"]):
        assert main([str(DEMO), *dry, *SMALL, f"data.train={path}", f"output_dir={runs}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "the expected answer of 10 of 10 train records wrong: the prompt asks for \\boxed{...}, in wh" in error
        assert (
            f"First: data.train={path}, line 1: the answer '1', written as '\\\\boxed{{1}}'. Set reward=boxed." in error
        )
    assert not runs.exists()


def test_no_steps_are_said_to_train_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    line = "steps=0: the model is evaluated and not trained; student/ will be the initial model"
    assert line in dry_run(capsys, "steps=0")
    assert line not in dry_run(capsys)


def test_prompts_that_ask_for_no_form_get_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "2"})
    found = "warning: 1 of 1 train prompts ask for no form of an answer, and reward=answer reads <answer>X</answer>."
    assert any(line.startswith(found) for line in dry_run(capsys, f"data.train={path}"))
    suffix = "data.suffix=' Give the final answer as <answer>X</answer>.'"
    assert not any(line.startswith("warning") for line in dry_run(capsys, f"data.train={path}", suffix))
    assert not any(line.startswith("warning") for line in dry_run(capsys)), "MiniSci's model knows the form"
