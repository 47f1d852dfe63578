"""Records of a user's own, and SciKnowEval in multiple-choice form: question, answer, and perhaps a system message.

The names of the fields are the usual ones, or those that `data.fields` sets.
"""

from __future__ import annotations

from demopsd_dist.config import FieldNames
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources.items import ParsedQuestion, SourceRecord

USUAL_NAMES = {
    "text": ("prompt", "question"),
    "answer": ("answer",),
    "field": ("field", "domain", "dataset"),
    "id": ("id", "idx"),
    "system": ("system",),
    "level": ("level",),
    "type": ("type", "kind"),
}


def parse(record: SourceRecord, names: FieldNames) -> ParsedQuestion:
    """Question of a record.

    Raises:
        DataError: the question or the answer is missing or not text, or another field has the wrong type.
    """

    def names_of(part: str) -> tuple[str, ...]:
        own = getattr(names, part)
        return USUAL_NAMES[part] if own is None else (own,)

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
