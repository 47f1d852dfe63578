"""Parser of your own data (`data.format=records`), also of SciKnowEval exported as question and answer.

A record has a question and an answer; a system message, field, level, type and id are optional. Fields are found by the
default names below, or by the names that `data.fields` sets.
"""

from __future__ import annotations

from demopsd_dist.config import FieldNames
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources.items import ParsedQuestion, SourceRecord

DEFAULT_FIELD_NAMES = {
    "text": ("prompt", "question"),
    "answer": ("answer",),
    "field": ("field", "domain", "dataset"),
    "id": ("id", "idx"),
    "system": ("system",),
    "level": ("level",),
    "type": ("type", "kind"),
}


def parse(record: SourceRecord, names: FieldNames) -> ParsedQuestion:
    """Parse a record into a question.

    Raises:
        DataError: the question or the answer is missing or not text, or another field has the wrong type.
    """

    def names_of(part: str) -> tuple[str, ...]:
        configured = getattr(names, part)
        return DEFAULT_FIELD_NAMES[part] if configured is None else (configured,)

    return ParsedQuestion(
        Question(
            id=record.id(record.optional_label(*names_of("id"))),
            text=record.required_text(*names_of("text")),
            answer=record.required_text(*names_of("answer")),
            field=record.optional_label(*names_of("field")) or "all",
            system=record.optional_text(*names_of("system")),
        ),
        level=record.optional_label(*names_of("level")),
        type=record.optional_label(*names_of("type")),
    )
