"""Records of your own, and SciKnowEval in multiple-choice form: a question, its answer, perhaps a system message.

What a field is called is found out, or said in `data.fields`.
"""

from __future__ import annotations

from demopsd_dist.config import FieldNames
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources.items import ParsedQuestion, SourceRecord, label_of, needed_text, text_of

USUAL = {
    "text": ("prompt", "question"),
    "answer": ("answer",),
    "field": ("field", "domain", "dataset"),
    "id": ("id", "idx"),
    "system": ("system",),
    "level": ("level",),
    "type": ("type", "kind"),
}


def read(record: SourceRecord, names: FieldNames) -> ParsedQuestion:
    """
    Raises:
        DataError: the question or the answer is missing or no text, or another field is not of its kind.
    """

    def called(part: str) -> tuple[str, ...]:
        own = getattr(names, part)
        return USUAL[part] if own is None else (own,)

    return ParsedQuestion(
        Question(
            id=record.id(label_of(record, *called("id"))),
            text=needed_text(record, *called("text")),
            answer=needed_text(record, *called("answer")),
            field=label_of(record, *called("field")) or "all",
            system=text_of(record, called("system"), needed=False),
        ),
        level=label_of(record, *called("level")),
        type=label_of(record, *called("type")),
    )
