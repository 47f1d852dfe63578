"""GPQA: the fields of its CSV files. Its items must not be republished: no message shows more than a record's id."""

from __future__ import annotations

import random

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import multiple_choice
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord

RIGHT = "Correct Answer"
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def recognises(names: set[str]) -> bool:
    """True where a record with these fields is one of GPQA."""
    return {"Question", RIGHT, WRONG[0]} <= names


def parse(record: SourceRecord) -> ParsedQuestion | RefusedRecord:
    """Question of a record, with shuffled options: the right one comes first in every record.

    The record's id alone seeds the shuffle, so that a question is the same in every run and every selection of
    questions.

    Raises:
        DataError: the question is missing, or a field has the wrong type.
    """
    text = record.required_text("Question").strip()
    texts = [record.optional_text(name) for name in (RIGHT, *WRONG)]
    options = [option.strip() for option in texts if option is not None]
    if len(options) != len(texts):
        return RefusedRecord("there are not 4 choices")
    if multiple_choice.repeated_option(options):
        return RefusedRecord(multiple_choice.REPEATED)
    record_id = record.optional_label("Record ID") or str(record.number)
    order = list(range(len(options)))
    random.Random(f"gpqa/{record_id}").shuffle(order)
    question = Question(
        id=record.id(record_id),
        text=multiple_choice.options_text(text, [options[index] for index in order]),
        answer=multiple_choice.LETTERS[order.index(0)],
        field=record.optional_label("High-level domain") or "all",
        system=multiple_choice.options_system(len(options)),
    )
    return ParsedQuestion(question, type="mcq-4-choices", withheld=True)
