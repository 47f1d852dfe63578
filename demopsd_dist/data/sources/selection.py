"""Which questions go where: filters, the held-out part of a set, and questions that stand in two sets."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from demopsd_dist.config import DataConfig
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord

_JOINER = "\u034f"
_HIDDEN_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"  # no marks themselves, but made of them


def filtered(item: ParsedQuestion, data: DataConfig) -> RefusedRecord | None:
    """Why the filters leave this one out. What a record does not say it does not pass; case does not count."""
    for what, value, allowed in (
        ("field", item.question.field, data.only_fields),
        ("level", item.level, data.only_levels),
        ("type", item.type, data.only_types),
    ):
        if allowed and (value is None or value.casefold() not in {word.casefold() for word in allowed}):
            said = f"no {what}" if value is None else f"{what} {value} is not"
            return RefusedRecord(f"filtered: {said} among data.only_{what}s")
    return None


def held_out(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """The part to train on and the part held out, both in the order given.

    What is held out follows from seed and texts alone, not from order or ids. It is `fraction` of the questions,
    rounded, with at least one on either side; questions with the same text stay together, which may make it fewer.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(same_text(question), []).append(question)
    texts = sorted(groups)
    random.Random(f"split/{seed}").shuffle(texts)
    wanted = min(max(1, round(fraction * len(questions))), len(questions) - 1)
    out: set[str] = set()
    count = 0
    for text in texts:
        if count + len(groups[text]) <= wanted:
            out.add(text)
            count += len(groups[text])
    return (
        [question for question in questions if same_text(question) not in out],
        [question for question in questions if same_text(question) in out],
    )


def same_text(question: Question) -> str:
    """Equal for texts that differ in Unicode form (NFKC), case and white space alone."""
    return " ".join(unicodedata.normalize("NFKC", _few_marks(question.text)).casefold().split())


def _few_marks(text: str) -> str:
    """`text` with a joiner after every 30 combining marks in a row, which normalization would sort in quadratic time
    (the stream-safe form of Unicode's annex 15). No language has as many."""
    if text.isascii():
        return text
    kept: list[str] = []
    marks = 0
    for c in text:
        marks = marks + 1 if unicodedata.combining(c) or c in _HIDDEN_MARKS else 0
        if marks > 30:
            kept.append(_JOINER)
            marks = 1
        kept.append(c)
    return "".join(kept)


@dataclass(frozen=True)
class DuplicateQuestions:
    """Questions of a test set that stand in the training set too."""

    split: str
    found: list[tuple[Question, Question]]  # (the test's, the first of train with that text)
    of: int  # questions of the test set

    def told(self) -> str:
        first, trained = self.found[0]
        return (
            f"{len(self.found)} of {self.of} {self.split} questions also stand in train "
            f"(first: {first.id}, in train {trained.id})"
        )


def twins(train: Iterable[Question], split: str, questions: Sequence[Question]) -> DuplicateQuestions:
    by_text: dict[str, Question] = {}
    for question in train:
        by_text.setdefault(same_text(question), question)
    found = [(question, by_text[text]) for question in questions if (text := same_text(question)) in by_text]
    return DuplicateQuestions(split, found, len(questions))
