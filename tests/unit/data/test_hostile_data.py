"""Any content of a data file gives questions, counted refusals, or one line with file and position. It never hangs."""

from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config import DataConfig
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import LoadedSource, ParsedQuestion, RefusedRecord, SourceRecord, load_data, load_source
from demopsd_dist.data.sources.gpqa import RIGHT, WRONG
from demopsd_dist.data.sources.gpqa import parse as parse_gpqa
from demopsd_dist.data.sources.items import MAX_REASONS
from demopsd_dist.data.sources.sciknoweval import parse as parse_sciknoweval
from demopsd_dist.data.sources.selection import normalized_text
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.util.errors import MAX_MESSAGE_CHARS, DataError

NAMES = ["prompt", "question", "answer", "field", "id", "system", "level", "type", "choices", "answerKey", "details"]
NAMES += ["domain", "text", "label", "Question", RIGHT, *WRONG, "Record ID"]
TEXTS = st.sampled_from(["", " ", "mcq-4-choices", "true_or_false", "A", "1+1?", "\0", "\ud800", "\x1b[2J", "a\nb"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner), max_leaves=8
)
RECORDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def outcome(path: Path) -> LoadedSource | str:
    """The loaded source, after checking that it can be stored again; or the line of the error."""
    try:
        loaded = load_source(DataConfig(), "train", str(path))
    except DataError as error:
        message = str(error)
    else:
        for question in loaded.questions:
            assert question.text.strip()
            assert question.answer.strip()
            assert all(part.isprintable() for part in (question.id, question.field))
            json.dumps(vars(question), ensure_ascii=False).encode()
        assert loaded.refusal_summary().isprintable()
        return loaded
    assert message.isprintable()
    assert len(message) <= MAX_MESSAGE_CHARS
    assert path.name in message
    return message


@given(records=st.lists(RECORDS, min_size=1, max_size=3))
def test_any_records(folder: Path, records: list[dict[str, Any]]) -> None:
    path = folder / "any.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    result = outcome(path)
    assert isinstance(result, str) or result.records == len(records)


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".csv", ".txt"]))
def test_any_bytes(folder: Path, content: bytes, suffix: str) -> None:
    path = folder / f"any{suffix}"
    path.write_bytes(content)
    outcome(path)


@given(lines=st.text(alphabet='promtansw{}[]:",\n\r\0é1', max_size=80))
def test_any_rows(folder: Path, lines: str) -> None:
    path = folder / "any.csv"
    path.write_bytes(f"prompt,answer\n{lines}".encode())
    outcome(path)


BIG = 10_000_000
GOOD = {"prompt": "1+1?", "answer": "2"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "1+1?"}', "line 2: the record has no 'answer'"),
        ('{"answer": "2"}', "line 2: the record has no 'prompt' or 'question'"),
        ('{"prompt": ["1+1?"], "answer": "2"}', "line 2: 'prompt[0]' must be a message with a role"),
        ('{"prompt": true, "answer": "2"}', "line 2: 'prompt' must be text, not bool"),
        ('{"prompt": "1+1?", "answer": NaN}', "line 2: 'answer' is nan, not a finite number"),
        ('{"prompt": "1+1?", "answer": 1e999}', "line 2: 'answer' is inf, not a finite number"),
        ('{"prompt": "1+1?", "answer": ' + "9" * 5000 + "}", "line 2: not valid JSON (Exceeds the limit (4300 digits)"),
        (
            '{"prompt": "a\\ud800b", "answer": "2"}',
            r"line 2: 'prompt' has an unpaired surrogate, '\ud800', at character 1",
        ),
        ('{"prompt": "1+1?", "answer": "2", "answer": "3"}', "line 2: not valid JSON ('answer' occurs twice)"),
        ('{"prompt": "1+1?", "answer": "2", "id": "' + "x" * BIG + '"}', f"line 2: 'id' or 'idx' has {BIG} characters"),
        (
            '{"prompt": "1+1?", "answer": "2", "field": "\\u001b[2J"}',
            "'data_source' has 4 characters",
        ),
        ("[" * BIG, "line 2: not valid JSON (maximum recursion depth exceeded"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "line 2: not valid JSON (maximum recursion depth exceeded"),
        ("x" * BIG, "line 2: not valid JSON (Expecting value"),
        ("\0" * 1000, "line 2: not valid JSON (Expecting value"),
        ('{"prompt" "1+1?"}', "line 2: not valid JSON (Expecting ':' at character 11). Each line must be one JSON"),
        ("7", "line 2: a JSON object is needed, not int"),
        (b"\xff\xfe", "is not UTF-8 text: invalid start byte"),
        ('{"prompt": "2+2?", "answer": "4", "id": "1"}', "two records have the id '1'"),
    ],
    ids=lambda value: None if len(value) < 80 else f"{len(value)} characters",
)
def test_a_broken_record_is_refused_by_line(folder: Path, line: str | bytes, message: str) -> None:
    path = folder / "broken.jsonl"
    path.write_bytes(
        json.dumps({**GOOD, "id": "1"}).encode() + b"\n" + (line.encode() if isinstance(line, str) else line)
    )
    result = outcome(path)
    assert isinstance(result, str)
    assert message in result


def test_long_and_odd_but_valid_text_is_loaded(folder: Path) -> None:
    path = folder / "whole.jsonl"
    texts = ["x" * BIG, "a\0b", "\x1b[2J\r\n", "水" * 1_000_000, "\ufeff1+1?"]
    path.write_text("\ufeff" + "\n".join(json.dumps({"prompt": text, "answer": 1e-5}) for text in texts))
    loaded = outcome(path)
    assert isinstance(loaded, LoadedSource)
    assert [question.text for question in loaded.questions] == texts
    assert {question.answer for question in loaded.questions} == {"0.00001"}, "no response would write 1e-05"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer,answer\n1,2,3\n", "two columns are named 'answer'"),
        ('prompt,answer\n"1,2\n', "not valid CSV (unexpected end of data)"),
        (f"prompt,answer\n{'x' * 200_000},2\n", "not valid CSV (field larger than field limit (131072))"),
        ("prompt,answer\n", "holds no record"),
        ("", "holds no record"),
    ],
    ids=["columns", "quote", "cell", "header", "empty"],
)
def test_a_broken_table_is_refused(folder: Path, content: str, message: str) -> None:
    path = folder / "broken.csv"
    path.write_text(content)
    result = outcome(path)
    assert isinstance(result, str)
    assert message in result


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "no\0thing.jsonl", "a folder.jsonl"])
def test_a_path_that_is_not_a_file(folder: Path, name: str) -> None:
    (folder / "a folder.jsonl").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=r"there is no such file|cannot be read: File name too long"):
        load_source(DataConfig(), "train", str(folder / name))


def test_a_file_that_gives_an_error_when_read() -> None:
    with pytest.raises(DataError, match=r"data.train=/proc/self/mem cannot be read: Input/output error\."):
        load_source(DataConfig(), "train", "/proc/self/mem")


@pytest.mark.parametrize("name", ["json", "csv", "pandas", "../x", "a/b/c", "hf:a"])
def test_a_hub_name_reads_no_folder_by_accident(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes some bare names for a builder that reads the working directory."""
    monkeypatch.chdir(folder)
    (folder / "there.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match="is not of the form hf:owner/name"):
        load_source(DataConfig(), "train", f"hf:{name}")


@pytest.mark.parametrize(
    "choices",
    [
        *(None, 7, "ABCD", ["A", "B", "C", "D"], {}),
        {"text": "ABCD", "label": "ABCD"},
        {"text": 4, "label": None},
        {"text": ["a", "b", None, "d"], "label": list("ABCD")},
        {"text": {"a": 1}, "label": {"A": 1}},
    ],
)
def test_invalid_choices_are_counted(choices: Any) -> None:
    record = {"question": "Why?", "type": "mcq-4-choices", "answerKey": "B", "choices": choices}
    assert parse_sciknoweval(SourceRecord(record, "here", "raw", 1)) == RefusedRecord("there are not 4 choices")


def test_a_choice_that_is_not_text_is_refused_by_name() -> None:
    choices = {"text": ["a", "b", {"c": 1}, "d"], "label": list("ABCD")}
    record = {"question": "Why?", "type": "mcq-4-choices", "answerKey": "B", "choices": choices}
    with pytest.raises(DataError, match=r"here: 'choices.text\[2\]' must be text, not dict"):
        parse_sciknoweval(SourceRecord(record, "here", "raw", 1))
    numbers = {"text": [1, 2.5, 3e-7, "d"], "label": list("ABCD")}
    parsed = parse_sciknoweval(SourceRecord({**record, "choices": numbers}, "here", "raw", 1))
    assert isinstance(parsed, ParsedQuestion)
    assert "A: 1\nB: 2.5\nC: 0.0000003\nD: d" in parsed.question.text


def test_gpqa_without_an_option_is_counted() -> None:
    row = {"Question": "Which?", RIGHT: "r", WRONG[0]: "a", WRONG[1]: None, WRONG[2]: "c"}
    assert parse_gpqa(SourceRecord(row, "here", "gpqa", 1)) == RefusedRecord("there are not 4 choices")


def test_thousands_of_reasons_fit_in_one_line(folder: Path) -> None:
    path = folder / "kinds.jsonl"
    kinds = [f"kind {i}" for i in range(3000)]
    records = [{"question": "Why?", "type": kind, "answerKey": "", "choices": {}} for kind in kinds]
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(train=str(path), test=None, ood=None))
    assert f"{3000 - MAX_REASONS} other reasons ({3000 - MAX_REASONS})" in str(caught.value)


@pytest.mark.parametrize("run", ["\u0301\u0323", "\u0f73", "\uff9e", "\u0344"])
def test_many_combining_marks_take_linear_time(run: str) -> None:
    """Normalization sorts a run of marks in quadratic time, minutes for this one."""
    text = "a" + run * 100_000
    question = Question("q", text, "1", "all")
    started = time.process_time()
    assert normalized_text(question)
    PromptBuilder(byte_tokenizer()).student(question)
    assert time.process_time() - started < 10


@given(text=st.text())
def test_equal_texts_stay_equal_in_other_forms(text: str) -> None:
    expected = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    assert normalized_text(Question("q", text, "1", "all")) == expected
