"""SciKnowEval as two files: the domain's questions, split, and read back by a run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demopsd_dist.config import DataConfig
from demopsd_dist.data.sources.load import load_data
from demopsd_dist.data.sources.sciknoweval_files import main


def record(number: int, domain: str, level: str = "L3", kind: str = "mcq-4-choices") -> dict[str, Any]:
    options = {"mcq-4-choices": 4, "mcq-2-choices": 2}.get(kind, 0)
    return {
        "question": f"{domain} {level} {kind} {number}?",
        "choices": {"text": [f"option {i}" for i in range(options)], "label": list("ABCD"[:options])},
        "answerKey": "B" if options else "",
        "answer": "" if options else "True",
        "type": kind,
        "domain": domain,
        "details": {"level": level, "task": "t", "subtask": "s", "source": "ö"},
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    records = [record(i, "Physics", kind="mcq-2-choices" if i % 4 == 0 else "mcq-4-choices") for i in range(40)]
    records += [record(i, "Chemistry") for i in range(5)] + [record(i, "Physics", level="L2") for i in range(5)]
    records += [record(99, "Physics", kind="true_or_false"), record(98, "Physics", kind="open-ended-qa")]
    path = tmp_path / "published.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def test_a_domain_becomes_two_files_that_a_run_reads(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    assert main(["physics", str(folder), "--source", str(published)]) == 0
    train, test = folder / "physics-train.jsonl", folder / "physics-test.jsonl"
    assert capsys.readouterr().out == f"36 questions in {train}\n4 questions in {test}\n"
    lines = [*train.read_text(encoding="utf-8").splitlines(), *test.read_text(encoding="utf-8").splitlines()]
    original = published.read_text(encoding="utf-8").splitlines()[:40]
    assert sorted(map(json.loads, lines), key=str) == sorted(map(json.loads, original), key=str), "as published"
    loaded = load_data(DataConfig(train=str(train), test=str(test), ood=None))
    assert [len(loaded.questions[split]) for split in ("train", "test")] == [36, 4]
    assert {question.answer for question in loaded.questions["train"]} == {"B"}
    held_out = load_data(DataConfig(train=str(published), test="split", ood=None, only_fields=["physics"],
                                    only_levels=["L3"], only_types=["mcq-4-choices", "mcq-2-choices"]))  # fmt: skip
    assert {q.text for q in held_out.questions["test"]} == {q.text for q in loaded.questions["test"]}


def test_a_source_without_the_domain_is_refused(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["biology", str(published.parent), "--source", str(published)]) == 2
    assert "has 0 questions of biology" in capsys.readouterr().err
    assert main(["physics", str(published.parent), "--source", "missing.jsonl"]) == 2
    assert "there is no such file" in capsys.readouterr().err
