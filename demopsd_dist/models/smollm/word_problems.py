"""Arithmetic word problems for a small pretrained model: `python -m demopsd_dist.models.smollm.word_problems data`

Writes `word-problems-train.jsonl` and `word-problems-test.jsonl` into that folder: one-step sums, differences, products
and shares in everyday wordings, drawn with a seed; no question stands in both files. The reward that fits them,
`last_number`, compares the last number of a response with the answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from demopsd_dist.data.records import Question

NAMES = ("Ann", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Lena", "Tom")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pencils", "shells", "stamps")
REQUEST = "Answer in one short sentence that ends with the number."
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class WordProblem:
    """One question with its answer.

    Example: `WordProblem("sum", "Ann has 3 eggs and gets 4 more. How many eggs does Ann have now?", 7)`
    """

    family: str
    text: str
    answer: int


def draw_problem(rng: random.Random) -> WordProblem:
    """Draw a problem: family, wording and numbers."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 40), rng.randint(2, 20)
    few, boxes = rng.randint(2, 12), rng.randint(2, 9)
    asked = f"How many {thing} does"
    return rng.choice(
        (
            WordProblem("sum", f"{name} has {a} {thing} and gets {b} more. {asked} {name} have now?", a + b),
            WordProblem("difference", f"{name} has {a + b} {thing} and gives {b} away. {asked} {name} have left?", a),
            WordProblem(
                "product", f"{name} has {boxes} boxes with {few} {thing} in each. {asked} {name} have?", boxes * few
            ),
            WordProblem(
                "share",
                f"{name} shares {boxes * few} {thing} equally among {boxes} friends. {asked} each friend get?",
                few,
            ),
        )
    )


def draw_problems(count: int, seed: int) -> list[WordProblem]:
    """Draw `count` different problems."""
    rng = random.Random(f"word problems/{seed}")
    problems: dict[str, WordProblem] = {}
    while len(problems) < count:
        problem = draw_problem(rng)
        problems.setdefault(problem.text, problem)
    return list(problems.values())


def last_number(response: str, question: Question) -> float:
    """Reward of a response: 1 where its last number equals the answer, else 0."""
    numbers = _NUMBER.findall(response)
    if not numbers:
        return 0.0
    return float(Fraction(numbers[-1].replace(",", "")) == Fraction(question.answer))


def write_problems(path: Path, problems: Sequence[WordProblem]) -> None:
    """Write problems as records that `data.train` and `data.test` read."""
    records = [
        {
            "prompt": f"{problem.text} {REQUEST}",
            "answer": str(problem.answer),
            "field": problem.family,
        }
        for problem in problems
    ]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    print(f"{len(records)} questions in {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit code 0."""
    parser = argparse.ArgumentParser(
        prog="python -m demopsd_dist.models.smollm.word_problems",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of the two files")
    parser.add_argument("--train", type=int, default=2048, help="number of training questions (%(default)s)")
    parser.add_argument("--test", type=int, default=128, help="number of test questions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    problems = draw_problems(arguments.train + arguments.test, arguments.seed)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_problems(arguments.folder / "word-problems-test.jsonl", problems[: arguments.test])
    write_problems(arguments.folder / "word-problems-train.jsonl", problems[arguments.test :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
