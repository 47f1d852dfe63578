"""SciKnowEval as published: four-choice, two-choice and true-or-false questions; the other types have no answer that
can be compared and are refused by name."""

from __future__ import annotations

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import mcq
from demopsd_dist.data.sources.items import Item, Record, Refused, needed_text, text_of

OPTIONS = {"mcq-4-choices": 4, "mcq-2-choices": 2}
STATEMENT = "true_or_false"


def recognises(names: set[str]) -> bool:
    return {"question", "type", "answerKey"} <= names


def read(record: Record) -> Item | Refused:
    """
    Raises:
        DataError: question or type is missing.
    """
    kind = needed_text(record, "type")
    text = needed_text(record, "question")
    if kind in OPTIONS:
        asked = _options(record, text, OPTIONS[kind])
    elif kind == STATEMENT:
        asked = _statement(record, text)
    else:
        return Refused(f"type {kind} is not multiple choice")
    if isinstance(asked, Refused):
        return asked
    text, answer, system = asked
    field = text_of(record, ["domain"], needed=False) or "all"
    return Item(
        Question(record.id(), text, answer, field, system),
        level=text_of(record, ["details.level", "level"], needed=False),
        type=kind,
    )


def _options(record: Record, text: str, count: int) -> tuple[str, str, str] | Refused:
    options, labels = _choices(record)
    if len(options) != count or len(labels) != count:
        return Refused(f"there are not {count} choices")
    key = text_of(record, ["answerKey"], needed=False)
    if key is None or labels.count(key.strip()) != 1:
        return Refused("the answer is not among the choices")
    # Letters by place, not by label: the system message promises A, B, ...
    answer = mcq.LETTERS[labels.index(key.strip())]
    return mcq.options_text(text, options), answer, mcq.options_system(count)


def _statement(record: Record, text: str) -> tuple[str, str, str] | Refused:
    options, labels = _choices(record)
    for name in ("answer", "answerKey"):
        given = (text_of(record, [name], needed=False) or "").strip()
        if given in labels and len(labels) == len(options):
            given = options[labels.index(given)].strip()
        if given.casefold() in ("true", "false"):
            return mcq.statement_text(text), given.casefold().capitalize(), mcq.statement_system()
    return Refused("the answer is neither true nor false")


def _choices(record: Record) -> tuple[list[str], list[str]]:
    choices = record.values.get("choices")
    if not isinstance(choices, dict):
        return [], []
    return [str(option) for option in choices.get("text") or []], [str(label) for label in choices.get("label") or []]
