"""GPQA: the fields of its CSV files. Its items must not be republished: no message shows more than a record's id."""

from __future__ import annotations

import random

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import multiple_choice
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord, label_of, needed_text, text_of

RIGHT = "Correct Answer"
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def recognises(names: set[str]) -> bool:
    return {"Question", RIGHT, WRONG[0]} <= names


def read(record: SourceRecord) -> ParsedQuestion | RefusedRecord:
    """The right option comes first in every record: options are shuffled, by the record's id alone, so that a question
    is the same in every run and in every selection of questions.

    Raises:
        DataError: the question is missing, or a field is not of its kind.
    """
    text = needed_text(record, "Question").strip()
    given = [text_of(record, [name], needed=False) for name in (RIGHT, *WRONG)]
    options = [option.strip() for option in given if option is not None]
    if len(options) != len(given):
        return RefusedRecord("there are not 4 choices")
    identity = label_of(record, "Record ID") or str(record.number)
    places = list(range(len(options)))
    random.Random(f"gpqa/{identity}").shuffle(places)
    question = Question(
        id=record.id(identity),
        text=multiple_choice.options_text(text, [options[place] for place in places]),
        answer=multiple_choice.LETTERS[places.index(0)],
        field=label_of(record, "High-level domain") or "all",
        system=multiple_choice.options_system(len(options)),
    )
    return ParsedQuestion(question, type="mcq-4-choices")
