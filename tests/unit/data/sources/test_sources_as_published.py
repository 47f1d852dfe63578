"""Files as they are found: JSON arrays, endings in capitals, narrow floats, repeated options, spellings of fields."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demopsd_dist.config import DataConfig
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import load_source
from demopsd_dist.util.errors import DataError

CASES = Path(__file__).parents[5] / "shared" / "cases"


def questions(path: Path | str, data: DataConfig | None = None) -> list[Question]:
    return load_source(data or DataConfig(), "train", str(path)).questions


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.json", "a.JSON", "a.jsonl"])
def test_a_json_array(tmp_path: Path, name: str) -> None:
    records = [{"prompt": "a", "answer": "1"}, {"prompt": "[b", "answer": 2}]
    path = written(tmp_path / name, "\ufeff\n" + json.dumps(records, indent=1) + "\n")
    assert [(question.id, question.text, question.answer) for question in questions(path)] == [
        ("a/1", "a", "1"),
        ("a/2", "[b", "2"),
    ]


def test_lines_in_a_json_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": 2}\n')
    assert [question.text for question in questions(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"prompt": "a", "answer": 1},\n{"prompt": "b", }]', "a.json, line 3: not valid JSON"),
        ('[\n{"prompt": "a", "answer": 1},\n\n2]', "line 4: element 2 must be a JSON object, not int"),
        ('[{"prompt": "a", "answer": 1}', "line 1: element 1 of the JSON array must be followed by a comma or its end"),
        ('[{"prompt": "a", "answer": 1}] x', "a.json, line 1: there is text after the end of the JSON array"),
        ('[{"prompt": "a", "prompt": "b"}]', "line 1: not valid JSON .'prompt' occurs twice"),
        ("[]\n", "holds no record"),
        ("[", "line 1: not valid JSON"),
    ],
)
def test_a_broken_array_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        questions(written(tmp_path / "a.json", content))


def test_an_ending_in_capitals(tmp_path: Path) -> None:
    assert questions(written(tmp_path / "caps.CSV", "prompt,answer\na,1\n"))[0].answer == "1"
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["1"]}), tmp_path / "caps.PARQUET")
    assert questions(tmp_path / "caps.PARQUET")[0].answer == "1"


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_narrow_float_has_the_digits_of_its_column(tmp_path: Path, kind: str) -> None:
    values = np.array([0.1, 9.81, 3.0], dtype=kind)
    nested = pa.array([{"truth": value} for value in values], pa.struct([("truth", pa.from_numpy_dtype(kind))]))
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "answer": values, "nested": nested}), tmp_path / "a.parquet")
    assert [question.answer for question in questions(tmp_path / "a.parquet")] == ["0.1", "9.81", "3.0"]
    data = DataConfig()
    data.fields.answer = "nested.truth"
    assert [question.answer for question in questions(tmp_path / "a.parquet", data)] == ["0.1", "9.81", "3.0"]


def test_two_options_with_the_same_text_are_refused_and_counted(tmp_path: Path) -> None:
    choices = {"text": ["7", " 7", "8", "9"], "label": list("ABCD")}
    record = {"question": "q", "choices": choices, "answerKey": "A", "type": "mcq-4-choices"}
    gpqa = {"Question": "q", "Correct Answer": "x\n", "Incorrect Answer 1": "y", "Incorrect Answer 2": "x"} | {
        "Incorrect Answer 3": "z"
    }
    for one in (record, gpqa):
        loaded = load_source(DataConfig(), "train", str(written(tmp_path / "a.jsonl", json.dumps(one))))
        assert loaded.refused == Counter({"two options have the same text": 1})


def test_fields_that_differ_in_case_or_space_are_one(tmp_path: Path) -> None:
    path = written(tmp_path / "f.csv", "prompt,answer,field\na,1,Physics\nb,2,Physics \nc,3,physics\nd,4,\ne,5,Chem\n")
    assert [question.field for question in questions(path)] == ["Physics", "Physics", "Physics", "all", "Chem"]
    assert len(questions(path, DataConfig(only_fields=["physics "]))) == 3


def test_a_system_message_and_a_suffix_for_data_without_them(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": 2, "system": "Own."}\n'
    found = questions(written(tmp_path / "a.jsonl", lines), DataConfig(system="Short.", suffix=" Use <answer>."))
    assert [(question.text, question.system) for question in found] == [
        ("a Use <answer>.", "Short."),
        ("b Use <answer>.", "Own."),
    ]
    assert load_source(DataConfig(system="S", suffix="x", minisci_train_size=3), "train", "minisci").questions == (
        load_source(DataConfig(minisci_train_size=3), "train", "minisci").questions
    )


@pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs are not beside the checkout")
def test_the_small_inputs() -> None:
    assert [question.answer for question in questions(CASES / "array.json")] == ["1", "2"]
    assert [question.answer for question in questions(CASES / "caps.CSV")] == ["1"]
    assert [question.answer for question in questions(CASES / "float32_answers.parquet")] == ["0.1", "9.81", "3.0"]
    assert {question.field for question in questions(CASES / "fields.csv")} == {"Physics", "all", "Chemistry"}
