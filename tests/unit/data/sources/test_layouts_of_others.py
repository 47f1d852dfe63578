"""Layouts of other people's data: read in the sense that was meant, or refused, and what is doubtful is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demopsd_dist.config import DataConfig, Duplicates, FieldNames, Format, load
from demopsd_dist.config.cross_checks import check
from demopsd_dist.data.checks.doubtful_questions import doubt_lines
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import LoadedSource, load_data, load_source
from demopsd_dist.util.errors import ConfigError, DataError
from tests.unit.config.test_config import DEMO
from tests.unit.data.sources.test_published_formats import loaded as loaded_with

OPTIONS = ["1/2", "1/3", "2", "3"]
LABELLED = [{"label": label, "text": text} for label, text in zip("PQRS", OPTIONS, strict=True)]


def loaded(folder: Path, *records: dict[str, Any], **settings: Any) -> LoadedSource:
    return loaded_with(folder, *records, data=DataConfig(**settings))


@pytest.mark.parametrize(
    ("record", "letter"),
    [
        ({"question_stem": "q", "choices": {"text": OPTIONS, "label": list("ABCD")}, "answerKey": "C"}, "C"),
        ({"problem": "q", "options": OPTIONS, "answer": "(B)"}, "B"),
        ({"query": "q", "options": OPTIONS, "answer": "b."}, "B"),
        ({"question": "q", "options": OPTIONS, "answer": "1/3"}, "B"),
        ({"question": "q", "options": OPTIONS, "answer": "1/3", "answer_idx": "B"}, "B"),
        ({"question": "q", "options": OPTIONS, "correct": "D"}, "D"),
        ({"question": "q", "options": LABELLED, "answer": "R"}, "C"),
        ({"question": "q", "options": [{"text": one} for one in OPTIONS], "answer": 0}, "A"),
        ({"question": "q", "A": "x", "B": "y", "C": "z", "answer": "(b)"}, "B"),
        ({"question": "q", "options": list("0123"), "answer": "2"}, "C"),
        ({"question": "q", "options": ["O", "A", "B", "AB"], "answer": "B", "answer_index": 1}, "B"),
        ({"question": "q", "choices": {"text": list("4213"), "label": list("1234")}, "answerKey": "1"}, "A"),
        ({"question": "q", "options": OPTIONS, "answer": "B", "correct": True}, "B"),
        ({"question": "q", "options": ["2", "0", "1", "5"], "answer": "2", "answer_index": 0}, "A"),
    ],
)
def test_options_are_read(tmp_path: Path, record: dict[str, Any], letter: str) -> None:
    (question,) = loaded(tmp_path, record).questions
    assert question.answer == letter


@pytest.mark.parametrize("answer", ["2", "7", "E"])
def test_an_answer_that_names_no_option_or_may_name_two_is_left_out(tmp_path: Path, answer: str) -> None:
    found = loaded(tmp_path, {"question": "q", "options": ["0", "2", "1", "5"], "answer": answer})
    which = "names one option by its letter or index and another by its text" if answer == "2" else "is not among the"
    (reason,) = found.refused
    assert which in reason


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "a": "x", "b": "y", "answer": "b"}, r"options in a, b, .*as a list in 'choices'"),
        ({"question": "q", "A": "x", "B": "y", "answer": "y"}, r"options in A, B, .*as a list in 'choices'"),
        ({"question": "q", "Option A": "x", "Option B": "y", "answer": "B"}, r"options in Option A, Option B"),
        ({"question": "q", "answerA": "x", "answerB": "y", "label": "1"}, r"options in answerA, answerB"),
        ({"question": "q", "Choices": ["x", "y"], "answer": "B"}, r"options in Choices"),
        ({"question": "q", "endings": ["x", "y"], "answer": "B"}, r"options in endings"),
        ({"question": "q", "Context": "Long.", "answer": "B"}, r"'Context' seems to belong to the question"),
        ({"question": "q", "body": "Long.", "answer": "B"}, r"'body' seems to belong to the question"),
        ({"question": "q", "image_path": "a.png", "answer": "B"}, r"'image_path' seems to belong to the question"),
        ({"question": "q", "instruction": "Add.", "answer": "3"}, r"in two fields, 'question' and 'instruction'"),
        ({"prompt": "[{'role': 'user', 'content': 'q'}]", "answer": "3"}, r"list of messages that was stored as text"),
        ({"prompt": '[{"content": "q", "role": "user"}]', "answer": "3"}, r"list of messages that was stored as text"),
        ({"prompt": "q", "answer": "{'ground_truth': '2'}"}, r"record that was stored as text.*'ground_truth'"),
        ({"prompt": "q", "answer": '{"ground_truth": "2", "style": null}'}, r"record that was stored as text"),
        ({"question": {"concept": "c", "stem": "q"}, "answer": "3"}, r"Name its part .* as question\.stem"),
        ({"question": "q", "answer": {"aliases": ["a"], "value": "b"}}, r"as answer\.value"),
        ({"question": "q", "answer": ["34"]}, r"must be text, not list\. Write one text in its place"),
        ({"question": "q", "answer": True}, r"must be text, not bool\. Write the word that a response shall give"),
        ({"question": "q", "Answer": "3"}, r"no 'answer'.*Rename 'Answer', name it in data\.fields"),
    ],
)
def test_what_would_be_left_out_is_refused(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, record)


def test_chats_of_sharegpt_and_instructions_of_alpaca(tmp_path: Path) -> None:
    chat = [{"from": "system", "value": "S"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "#### 4"}]
    (question,) = loaded(tmp_path, {"conversations": chat, "answer": "4"}).questions
    assert (question.system, question.text, question.answer) == ("S", "q", "4")
    (question,) = loaded(tmp_path, {"instruction": "q", "input": "", "answer": "4"}).questions
    assert question.text == "q"


def test_a_field_of_another_type_than_text_is_not_read_unless_it_was_named(tmp_path: Path) -> None:
    record = {"problem": "q", "answer": "3", "domain": ["Algebra"], "solution": ["It is 3."]}
    found = loaded(tmp_path, record)
    assert found.questions[0].field == "all"
    assert found.questions[0].solution == "It is 3."
    assert found.unread == {"domain": 1}
    with pytest.raises(DataError, match="'domain' must be text, not list"):
        loaded(tmp_path, record, fields=FieldNames(field="domain"))


@pytest.mark.parametrize(
    "record",
    [
        {"question": "3+4?", "a": "3", "b": "4", "answer": "7"},
        {"question": "3+4?", "candidates": ["7 or so", "8"], "answer": "7"},
        {"problem": "3+4?", "options": [], "answer": "7"},
        {"question": "3+4?", "has_image": "false", "num_images": "0", "answer": "7"},
        {"prompt": [{"role": "user", "content": "Add. 3+4?"}], "input": "3+4?", "answer": "7"},
    ],
)
def test_fields_that_only_look_like_a_part_of_the_question(tmp_path: Path, record: dict[str, Any]) -> None:
    (question,) = loaded(tmp_path, record).questions
    assert question.answer == "7"
    assert question.field == "all"


def test_a_number_is_a_label(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"question": "q", "answer": "7", "category": 2.0}).questions[0].field == "2.0"


def test_multiple_choice_of_the_test_has_the_named_answer_too(tmp_path: Path) -> None:
    record = {"question": "q", "choices": OPTIONS, "answer": "A", "meta": {"gold": "B"}}
    (tmp_path / "set.jsonl").write_text(json.dumps(record))
    data = DataConfig(format=Format.choices, fields=FieldNames(answer="meta.gold"))
    for split in ("train", "test", "ood"):
        assert load_source(data, split, str(tmp_path / "set.jsonl")).questions[0].answer == "B"


def test_answers_that_count_from_one_are_refused(tmp_path: Path) -> None:
    def records(first: int) -> list[dict[str, Any]]:
        return [{"question": f"q{i}", "choices": OPTIONS, "answer": first + i % 4} for i in range(20)]

    assert [one.answer for one in loaded(tmp_path, *records(0)).questions[:4]] == list("ABCD")
    with pytest.raises(DataError, match=r"the answer of 5 of 20 records is the number of their choices.*count from 1"):
        loaded(tmp_path, *records(1))


def test_named_fields_of_multiple_choice(tmp_path: Path) -> None:
    record = {"stem": "q?", "choices": OPTIONS, "answer": "A", "gold": "B", "why": "since"}
    names = FieldNames(text="stem", answer="gold", solution="why")
    (question,) = loaded(tmp_path, record, format=Format.choices, fields=names).questions
    assert (question.answer, question.solution) == ("B", "since")
    assert question.text.startswith("q?\n")


def test_a_set_whose_fields_have_no_effect_is_refused() -> None:
    sets = [{"path": "a.jsonl", "format": "gpqa", "fields": {"answer": "gold"}}, {"path": "b.jsonl"}]
    with pytest.raises(ConfigError, match=r"data\.fields has no effect with data\.format=gpqa"):
        check(load(DEMO, [f"data.train={json.dumps(sets)}"]))


def test_a_suffix_does_not_hide_a_repeated_question(tmp_path: Path) -> None:
    records = [{"question": f"What is {i} + 4?", "answer": str(i + 4)} for i in range(20)]
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    sets = [{"path": str(tmp_path / "one.jsonl"), "suffix": " Use <answer>."}, {"path": str(tmp_path / "two.jsonl")}]
    data = load_data(DataConfig(train=sets, test=None, ood=None))
    trained = {one.text.removesuffix(" Use <answer>.") for one in data.questions["train"]}
    assert not trained & {one.text.removesuffix(" Use <answer>.") for one in data.questions["test"]}
    again = DataConfig(train=sets[:1], test=str(tmp_path / "two.jsonl"), ood=None, duplicates=Duplicates.refuse)
    with pytest.raises(DataError, match="20 of 20 test questions are also in train"):
        load_data(again)


@pytest.mark.parametrize(("name", "message"), [("a.tsv", "a .tsv file is not read"), ("a.jsonl.gz", "unpack it")])
def test_files_of_other_forms_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=message):
        load_source(DataConfig(), "train", str(tmp_path / name))


def test_a_table_with_semicolons_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question;answer\n1,5?;2\n")
    with pytest.raises(DataError, match=r"its header has no comma but 1 ';'. Write it with commas"):
        load_source(DataConfig(), "train", str(tmp_path / "a.csv"))


def question(text: str, answer: str, number: int = 1) -> Question:
    return Question(id=f"set/{number}", text=text, answer=answer, field="all")


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([("q", "proof"), ("p", "7")], "warning: 1 of 2 train answers are placeholders such as 'proof' (first: set/0)"),
        ([("q", "\u200b")], "1 of 1 train answers are placeholders"),
        ([("q", "We add.\nThe answer is 4")], "1 of 1 train answers have several lines"),
        ([("q", r"so it is \boxed{4}")], "1 of 1 train answers have several lines, a box in a text"),
        ([("<|im_start|>user\nq<|im_end|>", "4")], "1 of 1 train prompts hold a chat template's marks"),
        ([("See <image 1>: how many?", "4")], "1 of 1 train prompts refer to an image"),
        ([("q", "4"), ("Q ", "5")], "1 of 2 train questions repeat an earlier one, 1 of them with another answer"),
        ([("q", "4"), ("q", "4")], "note: 1 of 2 train questions repeat an earlier one (first: set/1, after set/0)."),
    ],
)
def test_doubtful_questions_are_named(records: list[tuple[str, str]], line: str) -> None:
    questions = [question(text, answer, number) for number, (text, answer) in enumerate(records)]
    (found,) = doubt_lines("train", questions, {})
    assert line in found


def test_usual_questions_are_not_doubtful() -> None:
    usual = [("What is [1, 2]?", r"\boxed{3}"), ("Is a < b?", "No"), (r"Is $f'(x)$ \![0](1) odd?", "-1"), ("!", "0")]
    assert list(doubt_lines("train", [question(*one, number) for number, one in enumerate(usual)], {})) == []
