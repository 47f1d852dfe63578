"""What reading passes on: a record as it stands in its source, and what a format makes of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from demopsd_dist.data.records import Question
from demopsd_dist.util.errors import DataError

LABEL_CHARS = 200
REASONS_TOLD = 10
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SourceRecord:
    """One record as published.

    Example: `SourceRecord({"prompt": "1+1?", "answer": "2"}, "data.train=mine.jsonl, line 3", "mine", 3)`
    """

    values: dict[str, Any]
    where: str  # for messages
    source: str  # first part of its id
    number: int  # line or row, from 1

    def id(self, own: object = None) -> str:
        """By its own identity if it has one, else by its place."""
        return f"{self.source}/{self.number if own is None else own}"


@dataclass(frozen=True)
class ParsedQuestion:
    """A record that can be asked. `level` and `type` are what filters look at; a source may have neither."""

    question: Question
    level: str | None = None
    type: str | None = None


@dataclass(frozen=True)
class RefusedRecord:
    """A record that is whole but cannot be asked; `reason` is what it is counted under."""

    reason: str


@dataclass(frozen=True)
class LoadedSource:
    """What became of a source: every record is either in `questions` or counted in `refused`."""

    questions: list[Question]
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        return len(self.questions) + self.refused.total()

    def told(self) -> str:
        """The reasons, most frequent first, and of many the first `REASONS_TOLD`."""
        told = self.refused.most_common(REASONS_TOLD)
        words = [f"{reason} ({count})" for reason, count in told]
        if others := len(self.refused) - len(told):
            words.append(f"{others} other reasons ({self.refused.total() - sum(count for _, count in told)})")
        return ", ".join(words)


def text_of(record: SourceRecord, names: Sequence[str], *, needed: bool = True) -> str | None:
    """The first of the fields `names` that the record has, as text; numbers are written out. `a.b` is b inside a.

    Raises:
        DataError: the field is no text or number, holds half a character, or is `needed` and missing or blank.
    """
    for name in names:
        value = _value(record.values, name)
        if value is None:
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise DataError(f"{record.where}: {name!r} is {value}, which is no number. Mend or remove the record.")
            value = format(Decimal(repr(value)), "f")  # without an exponent, which no response would have
        if not isinstance(value, str):
            hint = (
                " Of a chat, give the system message as 'system' and the user's as 'prompt'."
                if name == "prompt"
                else ""
            )
            raise DataError(f"{record.where}: {name!r} must be text, not {type(value).__name__}.{hint}")
        if half := _HALF_CHARACTER.search(value):
            raise DataError(
                f"{record.where}: {name!r} holds {half.group()!r} at character {half.start()}, which is half a "
                "character. Mend or remove the record."
            )
        if value.strip():
            return value
        if not needed:
            return None
    if needed:
        raise DataError(f"{record.where}: the record has no {either(names)}. Add it or remove the record.")
    return None


def needed_text(record: SourceRecord, *names: str) -> str:
    text = text_of(record, names)
    assert text is not None
    return text


def label_of(record: SourceRecord, *names: str) -> str | None:
    """The same, perhaps missing, of what stands in logs and counts.

    Raises:
        DataError: it is no text or number, longer than `LABEL_CHARS`, or holds control characters.
    """
    label = text_of(record, names, needed=False)
    if label is not None and (len(label) > LABEL_CHARS or not label.isprintable()):
        raise DataError(
            f"{record.where}: {either(names)} of {len(label)} characters, {label[:LABEL_CHARS]!r}; it may have "
            f"{LABEL_CHARS}, all printable."
        )
    return label


def either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _value(values: dict[str, Any], name: str) -> Any:
    if name in values or "." not in name:
        return values.get(name)
    head, _, rest = name.partition(".")
    inner = values.get(head)
    return _value(inner, rest) if isinstance(inner, dict) else None
