"""MiniSci's questions: one- and two-step calculations with a whole-number answer, in four fields.

A family (`families.py`) is an expression over drawn operands and the sentences that ask for its value. Three wordings
are trained on; one is held out and makes the out-of-distribution set. Operands are split too: a question of the test
set never appears in training in any wording, since the split is a hash of its family and operands.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from demopsd_dist.data.records import Question
from demopsd_dist.minisci.families import FAMILIES, FIELDS, OPENINGS, Family

Split = Literal["train", "validation", "test", "ood"]
RESERVED = 256  # first questions of the test split that validation leaves out


_PRODUCT = re.compile(r"(\d+)(\*)(\d+)")
_BRACKET = re.compile(r"\((\d+)([+-])(\d+)\)")
_SUM = re.compile(r"(\d+)([+-])(\d+)")

Compute = Callable[[int, str, int], int]


def calculate(left: int, operator: str, right: int) -> int:
    """The right value of one operation."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def work_out(expression: str, compute: Compute = calculate) -> tuple[str, int]:
    """Work an expression out step by step: the chain of equalities, and its value.

    Raises:
        ValueError: a wrong `compute` has made an operand negative.

    Example: `work_out("35+3*3")` gives `("35+3*3=35+9=44", 44)`.
    """
    chain = [expression]
    while not chain[-1].isdigit():
        for pattern in (_BRACKET, _PRODUCT, _SUM):
            line, count = pattern.subn(lambda m: str(compute(int(m[1]), m[2], int(m[3]))), chain[-1])
            if count:
                chain.append(line)
                break
        else:  # a slip may have made an operand negative: "12--3"
            raise ValueError(f"cannot work out {chain[-1]!r}")
    return "=".join(chain), int(chain[-1])


def slip_once(rng: random.Random, expression: str) -> Compute:
    """A `compute` that gets exactly one of the expression's operations wrong, as a careless student would."""
    operations = len(re.findall(r"[+*-]", expression))
    wrong_at = rng.randrange(operations)
    done = 0

    def compute(left: int, operator: str, right: int) -> int:
        nonlocal done
        value = calculate(left, operator, right)
        if done == wrong_at:
            slips = [1, -1, 2, -2, 10, -10] + ([left, -left, right, -right] if operator == "*" else [])
            value = rng.choice([value + slip for slip in slips if value + slip > 0])
        done += 1
        return value

    return compute


def solution_text(reasoning: str, answer: int) -> str:
    """A response with its reasoning and answer tags."""
    return f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"


def split_of(family: Family, operands: dict[str, int]) -> Literal["train", "test"]:
    """The split of a combination of operands: one in five is for the test sets, by a hash that no seed changes."""
    digest = hashlib.blake2b(repr((family.name, sorted(operands.items()))).encode(), digest_size=4).digest()
    return "test" if digest[0] < 51 else "train"


@dataclass(frozen=True)
class Problem:
    """A drawn question with the expression behind it, from which solutions can be written."""

    question: Question
    expression: str


def draw_problem(rng: random.Random, split: Split, family: Family) -> Problem:
    """One problem of a family. `ood` has the held-out wording and test operands, `validation` test operands."""
    while True:
        operands = {name: rng.randint(*bounds) for name, bounds in family.operands.items()}
        if split_of(family, operands) == ("train" if split == "train" else "test"):
            break
    wording = family.held_out if split == "ood" else rng.choice(family.wordings)
    expression = family.expression.format(**operands)
    text = rng.choice(OPENINGS) + wording.format(**operands)
    identity = f"{split}/{family.field}/{family.name}/{'-'.join(map(str, operands.values()))}"
    working, answer = work_out(expression)
    solution = solution_text(working, answer)
    return Problem(Question(identity, text, str(answer), family.field, solution=solution), expression)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless, seeded stream that goes round the fields, so that any prefix is balanced."""
    rng = random.Random(f"minisci/{split}/{seed}")
    by_field = {field: [family for family in FAMILIES if family.field == field] for field in FIELDS}
    while True:
        for field in FIELDS:
            yield draw_problem(rng, split, rng.choice(by_field[field]))


def questions(split: Split, count: int, seed: int) -> list[Question]:
    """`count` different questions of a split, the same number from each field (one more or less).

    Validation shares no family and operands with the first 256 test questions: it is for choosing settings.

    Raises:
        ValueError: MiniSci does not have `count` different questions.
    """
    reserved = {_operands(q) for q in questions("test", RESERVED, seed)} if split == "validation" else set()
    drawn: dict[str, dict[str, Question]] = {field: {} for field in FIELDS}
    quota = {field: len(range(i, count, len(FIELDS))) for i, field in enumerate(FIELDS)}
    futile = 0  # draws since the last new question
    for problem in problems(split, seed):
        of_field, new = drawn[problem.question.field], problem.question
        if len(of_field) < quota[new.field] and new.id not in of_field and _operands(new) not in reserved:
            of_field[new.id] = new
            futile = 0
        futile += 1
        if all(len(drawn[field]) == quota[field] for field in FIELDS):
            break
        if futile == 20_000:
            available = sum(map(len, drawn.values()))
            raise ValueError(f"MiniSci's {split} split gave {available} different questions, not {count}.")
    return [q for column in zip_longest(*(f.values() for f in drawn.values())) for q in column if q]


def _operands(question: Question) -> str:
    """Family and operands of a question, which two different splits must not share."""
    return question.id.partition("/")[2]
