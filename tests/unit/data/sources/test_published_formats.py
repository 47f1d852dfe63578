"""Data sets as they are published, each read by its path alone: question, answer, options, chat and solution."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demopsd_dist.config import DataConfig, FieldNames, Format
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import LoadedSource, load_data, load_source
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.util.errors import DataError

CASES = Path(__file__).parents[5] / "shared" / "cases"
CHAT = [{"role": "system", "content": "Short."}, {"role": "user", "content": "4*6?"}]
TURNS = [
    {"role": "user", "content": "4*6?"},
    {"role": "assistant", "content": "24"},
    {"role": "user", "content": "And 5*6?"},
]


def loaded(folder: Path, *records: dict[str, Any], data: DataConfig | None = None) -> LoadedSource:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return load_source(data or DataConfig(), "train", str(path))


def one(folder: Path, **record: Any) -> Question:
    (question,) = loaded(folder, record).questions
    return question


WORKED = "4 trays of 6 are <<4*6=24>>24."
MESSAGE = [{"role": "assistant", "content": "So <answer>24</answer>"}]


@pytest.mark.parametrize(
    ("record", "answer", "solution"),
    [
        ({"question": "4*6?", "answer": f"{WORKED}\n#### 24"}, "24", WORKED),
        ({"question": "4*6?", "answer": f"{WORKED}\n#### 1,024"}, "1,024", WORKED),
        ({"question": "4*6?", "answer": "24"}, "24", None),
        ({"problem": "4*6?", "solution": r"It is \boxed{24}."}, "24", r"It is \boxed{24}."),
        ({"problem": "4*6?", "solution": "4*6 is 24.", "answer": 24, "level": "Level 5"}, "24", "4*6 is 24."),
        ({"problem": "4*6?", "expected_answer": "24"}, "24", None),
        ({"input": "4*6?", "label": "24"}, "24", None),
        ({"prompt": CHAT[1:], "reward_model": {"style": "rule", "ground_truth": "24"}}, "24", None),
        ({"prompt": "4*6?", "completion": "So <answer>24</answer>"}, "24", "So <answer>24</answer>"),
        ({"prompt": CHAT[1:], "completion": MESSAGE}, "24", "So <answer>24</answer>"),
        ({"prompt": CHAT[1:], "solution": "24", "answer": "24"}, "24", "24"),
        ({"messages": [*CHAT[1:], *MESSAGE]}, "24", "So <answer>24</answer>"),
        ({"messages": [*CHAT[1:], *MESSAGE], "answer": "24"}, "24", "So <answer>24</answer>"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "4*6?"}]}], "answer": 24}, "24", None),
    ],
)
def test_question_answer_and_solution(tmp_path: Path, record: dict, answer: str, solution: str | None) -> None:
    question = one(tmp_path, **record)
    assert (question.text, question.answer, question.solution) == ("4*6?", answer, solution)


def test_verl_parquet_keeps_system_message_field_and_solution(tmp_path: Path) -> None:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": CHAT,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "24"},
        "extra_info": {"answer": f"{WORKED}\n#### 24", "index": 0, "split": "train"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "verl.parquet")
    (question,) = load_source(DataConfig(), "train", str(tmp_path / "verl.parquet")).questions
    assert (question.text, question.system, question.answer) == ("4*6?", "Short.", "24")
    assert (question.field, question.solution) == ("openai/gsm8k", WORKED)


def test_a_chat_of_several_turns_is_the_prompt(tmp_path: Path) -> None:
    question = one(tmp_path, prompt=[CHAT[0], *TURNS], answer=30)
    assert question.history == (("user", "4*6?"), ("assistant", "24"))
    assert (question.text, question.system) == ("And 5*6?", "Short.")
    builder = PromptBuilder(byte_tokenizer())
    for tokens in (builder.student(question).tokens, builder.privileged(question, "So 30.")):
        text = builder.tokenizer.decode(tokens)
        places = [text.index(said) for said in ("Short.", "4*6?", "24", "And 5*6?")]
        assert places == sorted(places)
    assert "So 30." in builder.tokenizer.decode(builder.privileged(question, "So 30."))
    other = one(tmp_path, prompt=[*TURNS[:1], {"role": "assistant", "content": "25"}, TURNS[2]], answer=30)
    assert builder.student(other).tokens.tolist() != builder.student(question).tokens.tolist()


OPTIONS = ["oxygen", "nitrogen", "argon"]


@pytest.mark.parametrize(
    "record",
    [
        {"choices": OPTIONS, "answer": 1, "subject": "chem"},
        {"options": OPTIONS, "answer": "B", "answer_index": 1, "category": "chem"},
        {"choices": {"text": OPTIONS, "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"options": dict(zip("ABC", OPTIONS, strict=True)), "answer_idx": "B"},
        {"choices": OPTIONS, "label": 1},
        {**dict(zip("ABC", OPTIONS, strict=True)), "answer": "B"},
        {"options": {"A": "oxygen", "B": None, "C": "nitrogen", "D": "argon"}, "answer": "C"},
    ],
)
def test_published_multiple_choice(tmp_path: Path, record: dict) -> None:
    question = one(tmp_path, question="Most of air?", **record)
    assert question.text == "Most of air?\n\nA: oxygen\nB: nitrogen\nC: argon\nPlease reason step by step."
    assert question.answer == "B"
    assert "A, B or C" in (question.system or "")
    assert question.field == ("chem" if {"subject", "category"} & set(record) else "all")


def test_multiple_choice_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    def record(options: list[str], **answer: Any) -> dict[str, Any]:
        return {"question": "q", "options": options} | answer

    counted = loaded(
        tmp_path,
        record(OPTIONS, answer="D"),
        record(OPTIONS, answer=3),
        record(OPTIONS, answer=True),
        record(OPTIONS, answer="B", answer_index=2),
        record(["a", "a"], answer="A"),
        record(["a"], answer="A"),
        record([str(i) for i in range(11)], answer="A"),
    )
    assert counted.questions == []
    assert counted.refused == Counter(
        {
            "the answer is not among the choices": 2,
            "the answer is the number of the choices, which are counted from 0": 1,
            "answer and answer_index name different options": 1,
            "two options have the same text": 1,
            "there are 1 options, not 2 to 10": 1,
            "there are 11 options, not 2 to 10": 1,
        }
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "options": OPTIONS, "answer": "B"}, r"line 1: .* options in 'options'.*data\.format=choices"),
        ({"question": "q", "answer": "#### 24\nor so"}, r"line 1: the answer holds #### but no last line"),
        ({"question": "q", "answer": {"value": 3}}, r"line 1: 'answer' must be text, not dict\..*answer\.value"),
        ({"problem": "q", "solution": "It is 24."}, r"line 1: .*states no answer.*data\.fields\.answer"),
        ({"prompt": [*CHAT, *CHAT], "answer": 1}, r"line 1: 'prompt' has messages by system, user, system, user"),
        ({"prompt": [{"role": "assistant", "content": "a"}], "answer": 1}, r"messages by assistant; .*user must begin"),
        ({"prompt": [{"role": "tool", "content": "a"}], "answer": 1}, r"'prompt\[0\]' must be a message with a role"),
        ({"prompt": ["a"], "answer": 1}, r"'prompt\[0\]' must be a message with a role"),
        ({"prompt": CHAT, "system": "Other.", "answer": 1}, r"'system' and the chat have different system messages"),
        ({"question": "q", "options": OPTIONS}, r"line 1: the record has no 'answerKey' or 'answer'"),
        ({"question": "q", "choices": "['a', 'b']", "answer": 1}, r"options in 'choices'.*Write them as a list"),
        ({"prompt": "q", "A": "a", "B": "b", "answer": "A"}, r"has options in A, B, .*Set data\.format=choices"),
        ({"question": "q", "opa": "a", "opb": "b", "answer": 1}, r"options in opa, opb, .*as a list in 'choices'"),
        ({"problem": "q", "option_1": "a", "option_2": "b", "answer": 1}, r"options in option_1, option_2"),
        ({"article": "Long.", "question": "q", "options": OPTIONS, "answer": "B"}, r"'article' seems to belong to"),
        ({"context": "Long.", "question": "q", "answer": "B"}, r"'context' seems to belong to .*data\.fields\.text"),
        ({"instruction": "Add.", "input": "1 2", "answer": "3"}, r"in two fields, 'instruction' and 'input'"),
    ],
)
def test_a_record_that_is_not_understood_is_refused_with_the_remedy(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, record)


def test_fields_that_are_no_part_of_a_question_are_counted(tmp_path: Path) -> None:
    records = [
        {"question": "1+1?", "answer": 2, "note": "x", "empty": " ", "id": 1},
        {"question": "1+2?", "answer": 3, "note": "y", "hint": ["z"], "id": 2},
    ]
    found = loaded(tmp_path, *records)
    assert found.unread == Counter({"note": 2, "hint": 1})
    data = load_data(DataConfig(train=str(tmp_path / "set.jsonl"), test="minisci", ood=None))
    assert "fields of train records that are not read: note (2 records), hint (1 records)" in data.notes()
    mapped = DataConfig(fields=FieldNames(text="question", solution="note"))
    assert loaded(tmp_path, *records, data=mapped).unread == Counter({"hint": 1})
    context = {"context": "Long.", "question": "q", "answer": "B"}
    assert loaded(tmp_path, context, data=DataConfig(fields=FieldNames(text="question"))).unread == {"context": 1}
    choice = {"context": "Long.", "question": "q", "options": OPTIONS, "answer": "B"}
    assert loaded(tmp_path, choice, data=DataConfig(format=Format.choices)).unread == {"context": 1}


def test_a_named_field_that_no_training_record_has_is_refused(tmp_path: Path) -> None:
    record = {"question": "q", "answer": "B", "worked": "since"}
    data = DataConfig(fields=FieldNames(solution="worked", field="topic"))
    path = tmp_path / "set.jsonl"
    data = replace(data, train=str(path), test="minisci", ood=None)
    loaded(tmp_path, record)
    with pytest.raises(DataError, match=r"data\.fields\.field=topic: no record of .*; those of the first are question"):
        load_data(data)
    loaded(tmp_path, record | {"topic": None})
    assert load_data(data).questions["train"][0].field == "all", "the field is there, and empty"
    (tmp_path / "other.jsonl").write_text(json.dumps({"question": "p", "answer": "A", "topic": "air"}))
    both = [{"path": str(path)}, {"path": str(tmp_path / "other.jsonl")}]
    loaded(tmp_path, record)
    assert load_data(replace(data, train=both)).questions["train"][1].field == "air", "one of the sets has it"
    assert loaded(tmp_path, record, record | {"topic": "air"}, data=data).questions[1].field == "air"
    with pytest.raises(DataError, match=r"options in 'choices', which data\.format=records leaves out"):
        loaded(tmp_path, record | {"choices": OPTIONS}, data=data)
    path.write_text(json.dumps({"question": "q", "answer": "B"}))
    assert load_source(data, "ood", str(path)).questions[0].solution is None, "ood is another data set"
    mine = DataConfig(fields=FieldNames(text="problem", answer="answer"))
    path.write_text(json.dumps({"question": "q", "choices": OPTIONS, "answer": 1}))
    assert load_source(mine, "ood", str(path)).questions[0].answer == "B", "and may be a published one"


def test_fields_that_only_look_like_options_or_context_are_no_reason_to_refuse(tmp_path: Path) -> None:
    for record in (
        {"question": "What is A mod B?", "A": 3, "B": 2, "answer": 1},
        {"prompt": "Tom has 3. How many?", "context": "Tom has 3.", "answer": 1},
        {"question": "q", "support": 12, "table": False, "answer": 1},
        {"question": "q", "answer_1": "1", "answer_2": "one", "answer": 1},
        {"prompt": "Which? a) x b) y", "options": "a) x b) y", "answer": "1"},
    ):
        assert one(tmp_path, **record).answer == "1"


def test_named_fields_and_formats_overrule(tmp_path: Path) -> None:
    record = {"question": "q", "options": OPTIONS, "answer": "B", "whole": "q with options", "why": "since"}
    data = DataConfig(fields=FieldNames(text="whole", solution="why"))
    (question,) = loaded(tmp_path, record, data=data).questions
    assert (question.text, question.solution) == ("q with options", "since")
    with pytest.raises(DataError, match=r"Set data\.format=choices"):
        loaded(tmp_path, record, data=DataConfig(format=Format.records))
    prompt = {"prompt": "q", "options": OPTIONS, "answer": "B"}
    assert loaded(tmp_path, prompt, data=DataConfig(format=Format.choices)).questions[0].answer == "B"


@pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "answer"), [("gsm8k_style", "24"), ("mmlu_style", "B"), ("mmlu_pro_style", "B"), ("sk3", "B")]
)
def test_the_small_inputs_of_published_form(name: str, answer: str) -> None:
    assert load_source(DataConfig(), "train", str(CASES / f"{name}.jsonl")).questions[0].answer == answer
