"""Selection of questions: filters, the held-out part of a set, and duplicates between two sets."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from demopsd_dist.config import DataConfig
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord

_JOINER = "\u034f"
_MADE_OF_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"  # combining class 0, but they decompose into combining marks
_MAX_MARKS = 30


def refused_by_filters(item: ParsedQuestion, data: DataConfig) -> RefusedRecord | None:
    """Refusal by the first filter that the question does not pass; None where it passes all.

    A question without a value does not pass a filter on it. Case does not count.
    """
    for name, value, allowed in (
        ("field", item.question.field, data.only_fields),
        ("level", item.level, data.only_levels),
        ("type", item.type, data.only_types),
    ):
        if allowed and (value is None or value.strip().casefold() not in {word.strip().casefold() for word in allowed}):
            reason = f"no {name}" if value is None else f"{name} {value} is not"
            return RefusedRecord(f"filtered: {reason} among data.only_{name}s", item.where)
    return None


def split_held_out(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Split into a training part and a held-out part, both in the order given.

    The held-out part depends on seed and texts alone, not on order or ids. It is `fraction` of the questions,
    rounded, with at least one on either side; questions with the same text stay together, which may make it smaller.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(normalized_text(question), []).append(question)
    texts = sorted(groups)
    random.Random(f"split/{seed}").shuffle(texts)
    target = min(max(1, round(fraction * len(questions))), len(questions) - 1)
    held_out: set[str] = set()
    count = 0
    for text in texts:
        if count + len(groups[text]) <= target:
            held_out.add(text)
            count += len(groups[text])
    return (
        [question for question in questions if normalized_text(question) not in held_out],
        [question for question in questions if normalized_text(question) in held_out],
    )


def normalized_text(question: Question) -> str:
    """A question's text without `data.suffix`, and without differences of Unicode form (NFKC), case and white space."""
    chat = "\n".join([*(text for _, text in question.history), question.text.removesuffix(question.suffix)])
    return " ".join(unicodedata.normalize("NFKC", _limit_marks(chat)).casefold().split())


def _limit_marks(text: str) -> str:
    """`text` with a joiner after every 30 combining marks in a row, which normalization would sort in quadratic time.

    This is the stream-safe form of Unicode's annex 15. No language has runs of that length.
    """
    if text.isascii():
        return text
    characters: list[str] = []
    marks = 0
    for c in text:
        marks = marks + 1 if unicodedata.combining(c) or c in _MADE_OF_MARKS else 0
        if marks > _MAX_MARKS:
            characters.append(_JOINER)
            marks = 1
        characters.append(c)
    return "".join(characters)


@dataclass(frozen=True)
class DuplicateQuestions:
    """Questions of a test set that are also in the training set."""

    split: str
    pairs: list[tuple[Question, Question]]  # (question of the test set, the first training question with its text)
    test_questions: int  # size of the test set

    def summary(self) -> str:
        test, train = self.pairs[0]
        return (
            f"{len(self.pairs)} of {self.test_questions} {self.split} questions are also in train "
            f"(first: {test.id}, in train {train.id})"
        )


def find_duplicates(train: Iterable[Question], split: str, questions: Sequence[Question]) -> DuplicateQuestions:
    """Questions of a split with the same normalized text as a training question."""
    by_text: dict[str, Question] = {}
    for question in train:
        by_text.setdefault(normalized_text(question), question)
    pairs = [(question, by_text[text]) for question in questions if (text := normalized_text(question)) in by_text]
    return DuplicateQuestions(split, pairs, len(questions))
