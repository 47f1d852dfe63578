"""SciKnowEval as published: four-choice, two-choice and true-or-false questions.

The answers of its other types cannot be compared as text; these types are refused by name.
"""

from __future__ import annotations

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import multiple_choice
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord

OPTION_COUNTS = {"mcq-4-choices": 4, "mcq-2-choices": 2}
STATEMENT = "true_or_false"


def recognises(names: set[str]) -> bool:
    """True where a record with these fields is one of SciKnowEval."""
    return {"question", "type", "answerKey"} <= names


def parse(record: SourceRecord) -> ParsedQuestion | RefusedRecord:
    """Question of a record.

    Raises:
        DataError: question or type is missing, or a field has the wrong type.
    """
    kind = record.optional_label("type") or record.required_text("type")
    text = record.required_text("question")
    if kind in OPTION_COUNTS:
        parsed = _options(record, text, OPTION_COUNTS[kind])
    elif kind == STATEMENT:
        parsed = _statement(record, text)
    else:
        return RefusedRecord(f"type {kind} is not multiple choice")
    if isinstance(parsed, RefusedRecord):
        return parsed
    text, answer, system = parsed
    field = record.optional_label("domain") or "all"
    return ParsedQuestion(
        Question(record.id(), text, answer, field, system),
        level=record.optional_label("details.level", "level"),
        type=kind,
    )


def _options(record: SourceRecord, text: str, count: int) -> tuple[str, str, str] | RefusedRecord:
    """Text, answer and system message of a question with options."""
    options, labels = _choices(record)
    if len(options) != count or len(labels) != count:
        return RefusedRecord(f"there are not {count} choices")
    if multiple_choice.repeated_option(options):
        return RefusedRecord(multiple_choice.REPEATED)
    key = record.optional_text("answerKey")
    if key is None or labels.count(key.strip()) != 1:
        return RefusedRecord("the answer is not among the choices")
    # Letters by position, not by label: the system message promises A, B, ...
    answer = multiple_choice.LETTERS[labels.index(key.strip())]
    return multiple_choice.options_text(text, options), answer, multiple_choice.options_system(count)


def _statement(record: SourceRecord, text: str) -> tuple[str, str, str] | RefusedRecord:
    """Text, answer and system message of a true-or-false question."""
    options, labels = _choices(record)
    for name in ("answer", "answerKey"):
        answer = (record.optional_text(name) or "").strip()
        if answer in labels and len(labels) == len(options):
            answer = options[labels.index(answer)].strip()
        if answer.casefold() in ("true", "false"):
            return (
                multiple_choice.statement_text(text),
                answer.casefold().capitalize(),
                multiple_choice.statement_system(),
            )
    return RefusedRecord("the answer is neither true nor false")


def _choices(record: SourceRecord) -> tuple[list[str], list[str]]:
    """Options and their labels."""
    choices = record.values.get("choices")
    return _texts(record, choices, "text"), _texts(record, choices, "label")


def _texts(record: SourceRecord, choices: object, name: str) -> list[str]:
    """The list `choices[name]` without null and blank entries; empty where there is no such list."""
    values = choices.get(name) if isinstance(choices, dict) else None
    if not isinstance(values, list):
        return []
    entries = SourceRecord(
        {f"choices.{name}[{i}]": value for i, value in enumerate(values)}, record.where, "", record.number
    )
    return [text for entry in entries.values if (text := entries.optional_text(entry)) is not None]
