"""Examples of the data before the start: every data set, every view, short and whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from demopsd_dist.minisci import MODEL_DIR
from launch.train import main

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SMALL = ["data.minisci_train_size=8", "data.minisci_test_size=8", "rollout.prompts_per_step=1"]


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Lines of a dry run after the settings, without their `# `."""
    assert main([str(DEMO), "--dry-run", *SMALL, *words]) == 0, capsys.readouterr().err
    return [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("# ")]


def test_one_example_of_each_data_set_in_every_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "2", "system": "Be short."})
    test = write(tmp_path / "b.jsonl", {"question": "Air?", "choices": ["oxygen", "nitrogen"], "answer": 1})
    lines = dry_run(capsys, f"data.train={train}", f"data.test={test}", "data.ood=null", "model.system_role=fold")
    examples = [line for line in lines if line.startswith("example of ")]
    assert examples == [
        f"example of train: a/1 (data.train={train}, line 1)",
        f"example of test: b/1 (data.test={test}, line 1)",
    ]
    student, teacher = (next(i for i, line in enumerate(lines) if f"{who}'s prompt" in line) for who in USERS)
    assert lines[student + 1 : teacher] == ["    | <|user|>Be short.", "    | ", "    | 1+1?<|end|><|assistant|>"]
    assert "    | [a right sibling response]" in lines[teacher:]
    assert [line for line in lines if "expected answer" in line] == ["  expected answer: 2", "  expected answer: B"]
    assert "    | B: nitrogen" in lines
    assert sum("teacher's prompt" in line for line in lines) == 1, "an evaluation has no teacher"


USERS = ("student", "teacher")


def test_splits_of_one_source_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(line.startswith("example of ") for line in dry_run(capsys)) == 1
    train = write(tmp_path / "a.jsonl", *({"prompt": f"{i}+1?", "answer": i + 1} for i in range(20)))
    lines = dry_run(capsys, f"data.train={train}", "data.test=split", "data.ood=minisci")
    assert [line.split()[2] for line in lines if line.startswith("example of ")] == ["train:", "ood:"]
    assert not any("teacher's prompt" in line for line in dry_run(capsys, "method=grpo"))


def test_a_long_example_is_shortened_unless_it_is_to_be_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(f"line {i}" for i in range(40)) + "\x1b[2J" + "x" * 500
    train = write(tmp_path / "a.jsonl", {"prompt": text, "answer": "2"})
    words = [f"data.train={train}", "data.test=minisci", "data.ood=null"]
    short, whole = dry_run(capsys, *words), dry_run(capsys, *words, "--show")
    assert any("[... 16 lines, 127 characters ...]" in line for line in short)
    assert sum("(shortened; --show prints it whole)" in line for line in short) == 2
    assert not any("--show" in line for line in whole)
    assert not any("line 20" in line for line in short)
    assert sum("line 20" in line for line in whole) == 2
    assert not any(" characters ...]" in line for line in whole)
    assert any("x" * 500 in line for line in whole)
    assert all("\x1b" not in line for line in [*short, *whole])


def test_an_item_of_gpqa_is_shown_on_request_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"Question": "Secret?", "Correct Answer": "yes", "Record ID": "r7"}
    wrong = {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}
    path = write(tmp_path / "gpqa.jsonl", record | wrong)
    words = [f"data.test={path}", "data.ood=null", "model.system_role=fold"]
    lines = dry_run(capsys, *words)
    assert not any("Secret?" in line for line in lines)
    assert any(line.startswith("  prompt of ") and "not shown" in line for line in lines)
    assert any("Secret?" in line for line in dry_run(capsys, *words, "--show"))


SOLVED = {"question": "4*6?", "answer": "24", "solution": "4 sixes: <answer>24</answer>"}
STAND_IN = "[a right sibling response]"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("sibling", [STAND_IN]),
        ("dataset", ["4 sixes: <answer>24</answer>"]),
        ("sibling_or_dataset", [f"{STAND_IN} or, where there is none: 4 sixes: <answer>24</answer>"]),
        ("sibling_and_dataset", [STAND_IN, "4 sixes: <answer>24</answer>"]),
        ("answer_only", ["<answer>24</answer>"]),
        ("other_question", ["[the solution of another question of the step]"]),
    ],
)
def test_the_teacher_sees_the_solution_of_the_source(
    source: str, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "a.jsonl", SOLVED, SOLVED | {"question": "6*4?"})
    words = [f"data.train={train}", "rollout.prompts_per_step=2", f"privileged.source={source}", "--show"]
    lines = dry_run(capsys, *words)
    begin = next(i for i, line in enumerate(lines) if line.endswith(f"tokens (privileged.source={source}):"))
    view = [line.removeprefix("    | ") for line in lines[begin + 1 :]]
    places = [view.index(text) for text in shown]
    assert places == sorted(places)
    texts = {STAND_IN, "4 sixes: <answer>24</answer>", "<answer>24</answer>"} - set(shown)
    assert not texts & set(view)


def test_a_record_without_a_solution_says_that_nothing_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unsolved = [{"question": f"{i}*1?", "answer": i} for i in range(5)]
    train = write(tmp_path / "a.jsonl", *unsolved, SOLVED)
    lines = dry_run(capsys, f"data.train={train}", "privileged.source=dataset")
    assert any("none: the record has no solution to show and is not trained on" in line for line in lines)


def test_settings_that_are_hardly_meant_get_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Solutions that nobody sees, the demo's model on other questions, the demo's learning rate for another model."""
    records = [{"question": f"{i} + 1?", "answer": f"{i} + 1 = {i + 1}.\n#### {i + 1}"} for i in range(9)]
    train = write(tmp_path / "a.jsonl", *records)
    words = [f"data.train={train}", "data.test=minisci", "data.ood=null", "reward=gsm8k"]
    lines = dry_run(capsys, *words)
    unseen = (
        "note: 9 of 9 training records have a solution, which the teacher does not see with privileged.source=sibling"
    )
    small = "note: model.path=minisci answers hardly anything but MiniSci's questions"
    assert any(line.startswith(unseen) for line in lines)
    assert any(line.startswith(small) for line in lines)
    assert not any("learning_rate" in line for line in lines)
    assert lines[-1] == "nothing was started; the same command without --dry-run trains"
    lines = dry_run(capsys, *words, "rollout.max_response_tokens=4", "learner.learning_rate=0.5")
    long = "note: 9 of 9 solutions of the data have more than rollout.max_response_tokens=4 tokens (the longest "
    assert any(line.startswith(long) for line in lines)
    assert any(line.startswith("warning: learner.learning_rate=0.5 is high; the demo has 3e-4") for line in lines)
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    lines = dry_run(capsys, *words, "privileged.source=dataset", f"model.path={tmp_path / 'model'}")
    assert not any(line.startswith(("note: 9 of 9", small[:20])) for line in lines)
    assert any(
        line.startswith("warning: learner.learning_rate=0.0003 is high for a pretrained model") for line in lines
    )
    assert not any(line.startswith(("note", "warning")) for line in dry_run(capsys))


def test_the_solution_in_the_teachers_prompt_is_never_left_out_of_a_short_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat template with a system text of several lines, as pretrained models have."""
    record = {"prompt": "1+1?", "answer": "2", "system": "\n".join(f"rule {i}" for i in range(8))}
    lines = dry_run(capsys, f"data.train={write(tmp_path / 'a.jsonl', record)}", "model.system_role=fold")
    assert any("[a right sibling response]" in line for line in lines)
    assert not any("characters ...]" in line for line in lines)


def test_the_data_is_shown_on_a_machine_without_the_gpus_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The placement is refused all the same, after it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["rollout.gpus_per_worker=1", "rollout.num_workers=40", "teacher.gpus_per_worker=1"]
    assert main([str(DEMO), "--dry-run", *SMALL, *words]) == 2
    said = capsys.readouterr()
    assert "# example of train: " in said.out
    assert "placement of the roles" not in said.out
    assert said.err.startswith("error: ")
    assert "GPUs; there are" in said.err
