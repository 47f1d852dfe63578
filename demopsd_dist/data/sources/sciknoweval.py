"""SciKnowEval as published: four-choice, two-choice and true-or-false questions; the other types have no answer that
can be compared and are refused by name."""

from __future__ import annotations

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import multiple_choice
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord, label_of, needed_text, text_of

OPTIONS = {"mcq-4-choices": 4, "mcq-2-choices": 2}
STATEMENT = "true_or_false"


def recognises(names: set[str]) -> bool:
    return {"question", "type", "answerKey"} <= names


def read(record: SourceRecord) -> ParsedQuestion | RefusedRecord:
    """
    Raises:
        DataError: question or type is missing, or a field is not of its kind.
    """
    kind = label_of(record, "type") or needed_text(record, "type")
    text = needed_text(record, "question")
    if kind in OPTIONS:
        asked = _options(record, text, OPTIONS[kind])
    elif kind == STATEMENT:
        asked = _statement(record, text)
    else:
        return RefusedRecord(f"type {kind} is not multiple choice")
    if isinstance(asked, RefusedRecord):
        return asked
    text, answer, system = asked
    field = label_of(record, "domain") or "all"
    return ParsedQuestion(
        Question(record.id(), text, answer, field, system),
        level=label_of(record, "details.level", "level"),
        type=kind,
    )


def _options(record: SourceRecord, text: str, count: int) -> tuple[str, str, str] | RefusedRecord:
    options, labels = _choices(record)
    if len(options) != count or len(labels) != count:
        return RefusedRecord(f"there are not {count} choices")
    key = text_of(record, ["answerKey"], needed=False)
    if key is None or labels.count(key.strip()) != 1:
        return RefusedRecord("the answer is not among the choices")
    # Letters by place, not by label: the system message promises A, B, ...
    answer = multiple_choice.LETTERS[labels.index(key.strip())]
    return multiple_choice.options_text(text, options), answer, multiple_choice.options_system(count)


def _statement(record: SourceRecord, text: str) -> tuple[str, str, str] | RefusedRecord:
    options, labels = _choices(record)
    for name in ("answer", "answerKey"):
        given = (text_of(record, [name], needed=False) or "").strip()
        if given in labels and len(labels) == len(options):
            given = options[labels.index(given)].strip()
        if given.casefold() in ("true", "false"):
            return (
                multiple_choice.statement_text(text),
                given.casefold().capitalize(),
                multiple_choice.statement_system(),
            )
    return RefusedRecord("the answer is neither true nor false")


def _choices(record: SourceRecord) -> tuple[list[str], list[str]]:
    """Options and their labels."""
    choices = record.values.get("choices")
    return _texts(record, choices, "text"), _texts(record, choices, "label")


def _texts(record: SourceRecord, choices: object, name: str) -> list[str]:
    """The list `choices[name]` without what is null or blank in it; empty where there is no such list."""
    values = choices.get(name) if isinstance(choices, dict) else None
    if not isinstance(values, list):
        return []
    parts = SourceRecord(
        {f"choices.{name}[{i}]": value for i, value in enumerate(values)}, record.where, "", record.number
    )
    return [text for part in parts.values if (text := text_of(parts, [part], needed=False)) is not None]
