"""Records of a source, and the questions or refusals that a format parses them into."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from demopsd_dist.data.records import Question
from demopsd_dist.util.errors import DataError
from demopsd_dist.util.printable import escape_control_chars

MAX_LABEL_CHARS = 200
MAX_REASONS = 10
MAX_NAMES = 12  # fields of a record that a message lists
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SourceRecord:
    """One record as published.

    Example: `SourceRecord({"prompt": "1+1?", "answer": "2"}, "data.train=mine.jsonl, line 3", "mine", 3)`

    Attributes:
        where: place of the record in its source, for messages.
        source: name of the source, the first part of the question's id.
        number: line or row, from 1.
        read: names of the fields that have been read so far.
    """

    values: dict[str, Any]
    where: str
    source: str
    number: int
    read: set[str] = field(default_factory=set, compare=False, repr=False)

    def unread(self) -> list[str]:
        """Names of the fields that hold something and have not been read."""
        blank: tuple[object, ...] = (None, "", [], {})
        unread = ((name, value) for name, value in self.values.items() if name not in self.read)
        return [name for name, value in unread if (value.strip() if isinstance(value, str) else value) not in blank]

    def value(self, name: str) -> Any:
        """Value of a field, which then counts as read; None where it is missing. `a.b` means field b inside a."""
        value = nested_value(self.values, name)
        if value is not None:
            self.read.add(name if name in self.values else name.partition(".")[0])
        return value

    def id(self, record_id: object = None) -> str:
        """Question id: the source, and the record's id if it has one, or its number."""
        return f"{self.source}/{self.number if record_id is None else record_id}"

    def first_value(self, *names: str) -> tuple[str, Any] | None:
        """Name and value of the first of these fields that is there and not blank; None where none is."""
        for name in names:
            value = self.value(name)
            if value is not None and not (isinstance(value, str) and not value.strip()):
                return name, value
        return None

    def required_text(self, *names: str) -> str:
        """Text of the first of these fields that is not blank. `a.b` means field b inside a. A number becomes decimal
        text ("0.00001").

        Raises:
            DataError: no field has text, or the field is not text or a number, or holds an unpaired surrogate (invalid
                Unicode).
        """
        text = self._text(names, required=True)
        if text is None:
            raise DataError(f"{self.where}: {self.absence(names)}")
        return text

    def absence(self, names: Sequence[str], advice: str = "Add it, name its field in data.fields") -> str:
        """Sentence about fields of which none has a value: the empty one, or that there is none, and the others."""
        texts = {name: value for name in names if isinstance(value := nested_value(self.values, name), str)}
        if empty := [name for name, text in texts.items() if not text.strip()]:
            return f"{_either(empty)} is empty. Write its text, or remove the record."
        near = _near_name(names, list(self.values))
        if near is not None:
            advice = f"Rename {near!r}, name it in data.fields"
        own = [escape_control_chars(str(name), max_chars=40) for name in self.values][:MAX_NAMES]
        fields = f"; its fields are {', '.join(own)}" if own else ""
        return f"the record has no {_either(names)}{fields}. {advice}, or remove the record."

    def optional_text(self, *names: str) -> str | None:
        """Text of the first of these fields that the record has; None where it is missing or blank.

        Raises:
            DataError: the field is not text or a number, or holds an unpaired surrogate (invalid Unicode).
        """
        return self._text(names, required=False)

    def optional_label(self, *names: str) -> str | None:
        """A text that appears in logs and counts, such as an id, a field or a level; None where it is missing.

        Raises:
            DataError: the field is not text or a number, is longer than `MAX_LABEL_CHARS`, or is not printable.
        """
        label = self.optional_text(*names)
        if label is not None and (len(label) > MAX_LABEL_CHARS or not label.isprintable()):
            raise DataError(
                f"{self.where}: {_either(names)} has {len(label)} characters and begins {label[:MAX_LABEL_CHARS]!r}; "
                f"at most {MAX_LABEL_CHARS} are allowed, all of them printable. Shorten or correct it."
            )
        return label

    def label(self, chosen: str | None, *usual: str) -> str | None:
        """A label under the name that the user has chosen, or the usual ones. None where the first field under a usual
        name is no label, as a list; it then counts as not read.

        Raises:
            DataError: as for `optional_label`.
        """
        if chosen is not None:
            return self.optional_label(chosen)
        value = next((value for name in usual if (value := nested_value(self.values, name)) is not None), None)
        is_label = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return self.optional_label(*usual) if is_label else None

    def _text(self, names: Sequence[str], *, required: bool) -> str | None:
        for name in names:
            value = self.value(name)
            if value is None:
                continue
            text = self._checked_text(name, value)
            if text.strip():
                return text
            if not required:  # a blank field counts as missing; its other names are not tried
                return None
        return None

    def _checked_text(self, name: str, value: Any) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise DataError(
                    f"{self.where}: {name!r} is {value}, not a finite number. Correct or remove the record."
                )
            # decimal notation: the reward does not treat "1e-05" as equal to "0.00001"
            return format(Decimal(repr(value)), "f")
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {name!r} must be text, not {type(value).__name__}. {_as_text(name, value)}")
        if surrogate := _SURROGATE.search(value):
            raise DataError(
                f"{self.where}: {name!r} has an unpaired surrogate, {surrogate.group()!r}, at character "
                f"{surrogate.start()}: invalid Unicode. Correct or remove the record."
            )
        return value


@dataclass(frozen=True)
class ParsedQuestion:
    """A question with the level and type that filters select by; a source may have neither.

    Attributes:
        where: place of its record, for messages.
        withheld: no message may show its text (GPQA's items must not be republished).
    """

    question: Question
    level: str | None = None
    type: str | None = None
    where: str = ""
    withheld: bool = False


@dataclass(frozen=True)
class RefusedRecord:
    """A valid record that gives no question; refused records are counted by `reason`. `where` names file and line."""

    reason: str
    where: str = ""


@dataclass(frozen=True)
class LoadedSource:
    """A loaded source: every record is either in `questions` or counted in `refused`.

    Attributes:
        places: place of each question's record by the question's id, for messages.
        withheld: ids of questions whose text no message may show.
        first_refused: place in its file of the first record that was refused for each reason.
        unread: fields that are no part of a question, with the number of records in which they hold something.
        unseen: refusal of each field that the user has named and that no record has.
    """

    questions: list[Question]
    refused: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)
    withheld: frozenset[str] = frozenset()
    first_refused: dict[str, str] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> int:
        return len(self.questions) + self.refused.total()

    def unread_summary(self) -> str:
        """The fields that are no part of a question, most frequent first, at most `MAX_NAMES` of them."""
        listed = [
            f"{escape_control_chars(str(name), max_chars=40)} ({count:,} records)"
            for name, count in self.unread.most_common(MAX_NAMES)
        ]
        others = [f"{len(self.unread) - MAX_NAMES} others"] if len(self.unread) > MAX_NAMES else []
        return ", ".join([*listed, *others])

    def refusal_summary(self) -> str:
        """The reasons with their counts and the place of the first record of each, most frequent first, at most
        `MAX_REASONS` of them."""
        listed = self.refused.most_common(MAX_REASONS)
        firsts = {reason: f", first {place}" for reason, place in self.first_refused.items() if place}
        reasons = [f"{reason} ({count}{firsts.get(reason, '')})" for reason, count in listed]
        if others := len(self.refused) - len(listed):
            reasons.append(f"{others} other reasons ({self.refused.total() - sum(count for _, count in listed)})")
        return ", ".join(reasons)


def chosen_or_usual(chosen: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names under which a field is looked for: the one that the user has chosen, or the usual ones."""
    return usual if chosen is None else (chosen,)


def _near_name(names: Sequence[str], own: Sequence[str]) -> str | None:
    """A field whose name differs from a wanted one in case or white space alone."""
    wanted = {name.casefold() for name in names}
    return next((name for name in own if name not in names and name.strip().casefold() in wanted), None)


def _as_text(name: str, value: Any) -> str:
    """Remedy for a value that is no text; of a mapping, the part that is most likely the wanted text."""
    if isinstance(value, dict):
        texts = [part for part, inner in value.items() if isinstance(inner, str)]
        usual = [part for part in ("text", "value", "content", "stem", "ground_truth", "answer") if part in texts]
        return f"Name its part in data.fields, as {name}.{next(iter([*usual, *texts, *value]), 'name')}."
    if isinstance(value, bool):
        return "Write the word that a response shall give, such as yes or True."
    return "Write one text in its place, name another field in data.fields, or remove the record."


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def has_field(values: dict[str, Any], name: str) -> bool:
    """True where a record has the field, also if it holds nothing; of `a.b` also where `a` holds nothing."""
    if name in values or "." not in name:
        return name in values
    head, _, rest = name.partition(".")
    inner = values.get(head)
    return has_field(inner, rest) if isinstance(inner, dict) else head in values and inner is None


def nested_value(values: dict[str, Any], name: str) -> Any:
    if name in values or "." not in name:
        return values.get(name)
    head, _, rest = name.partition(".")
    inner = values.get(head)
    return nested_value(inner, rest) if isinstance(inner, dict) else None
