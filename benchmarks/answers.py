"""Answers by value, beside math-verify called directly and the plain reward: `python -m benchmarks.answers`

The 2,000 pairs are those of tests/unit/data/answer_cases, each once, and generated ones: an expected answer, and an
equal or another one in a different form. `reward=math` and `reward=answer` reward a response with each answer;
math-verify is called in this process, with its own time-outs.
"""

from __future__ import annotations

import argparse
import logging
import random
import runpy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import ANSWER_FORMS, Reward, resolve_reward, same_answer
from demopsd_dist.data.rewards.math_reward import is_compared_by_value

CASES = Path(__file__).parents[1] / "tests" / "unit" / "data" / "answer_cases"
TABLES = {
    "same_answer_cases.py": ("SAME", "DIFFERENT"),
    "spelled_answer_cases.py": ("WRAPPED", "SPELLED", "CASE_FOLDED", "STAY_DIFFERENT"),
}
PAIRS = 2_000
DIRECT_S = 5  # time-out of math-verify's parsing and comparison
Pair = tuple[str, str]


@dataclass(frozen=True)
class Decision:
    """Decisions about one pair; `direct` is None where math-verify reads only one of the two, or takes too long."""

    answer: str
    expected: str
    exact: bool
    compared_by_value: bool
    reward: float
    undecided: bool
    direct: bool | None


def fraction(rng: random.Random) -> Iterator[Pair]:
    top, bottom, factor = rng.randint(-99, 99), rng.randint(2, 40), rng.randint(2, 9)
    forms = [rf"\frac{{{top * factor}}}{{{bottom * factor}}}", rf"{top} \div {bottom}", rf"\tfrac{{{top}}}{{{bottom}}}"]
    yield rng.choice(forms), f"{top}/{bottom}"
    yield rng.choice(forms), f"{top + 1}/{bottom}"


def power(rng: random.Random) -> Iterator[Pair]:
    base, exponent = rng.randint(2, 12), rng.randint(2, 6)
    yield rf"{base}^{{{exponent}}}", str(base**exponent)
    yield rf"{base}^{{{exponent}}}", str(base * exponent)


def surd(rng: random.Random) -> Iterator[Pair]:
    factor, root = rng.randint(2, 9), rng.choice([2, 3, 5, 6, 7])
    yield rf"{factor}\sqrt{{{root}}}", rf"\sqrt{{{factor * factor * root}}}"
    yield rf"{factor}\sqrt{{{root}}}", rf"\sqrt{{{factor * root}}}"


def polynomial(rng: random.Random) -> Iterator[Pair]:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    yield rf"x^2 + {a + b}x + {a * b}", f"(x+{a})(x+{b})"
    yield rf"x^2 + {a + b}x + {a * b + 1}", f"(x+{a})(x+{b})"


def several(rng: random.Random) -> Iterator[Pair]:
    values = rng.sample(range(-20, 60), 3)
    text = ", ".join(map(str, values))
    yield rf"\{{{', '.join(map(str, reversed(values)))}\}}", rf"\{{{text}\}}"
    yield rf"\{{{values[0]}, {values[1]}\}}", rf"\{{{text}\}}"


def interval(rng: random.Random) -> Iterator[Pair]:
    low = rng.randint(-9, 9)
    high = low + rng.randint(1, 9)
    yield rf"x \in [{low}, {high}]", f"[{low},{high}]"
    yield f"({low}, {high}]", f"[{low},{high}]"


def percentage(rng: random.Random) -> Iterator[Pair]:
    percent = rng.randint(1, 250)
    yield rf"{percent}\%", f"{percent / 100:g}"
    yield rf"{percent}\%", f"{percent / 10:g}"


def equation(rng: random.Random) -> Iterator[Pair]:
    a, b = rng.randint(2, 9), rng.randint(1, 20)
    yield f"y = {b} + {a}x", f"y={a}x+{b}"
    yield f"y = {a} + {b}x" if a != b else f"y = {a}x", f"y={a}x+{b}"


KINDS: tuple[Callable[[random.Random], Iterator[Pair]], ...] = (
    *(fraction, power, surd, polynomial),
    *(several, interval, percentage, equation),
)


def pairs(count: int) -> list[Pair]:
    """The decided cases of the tests, then generated pairs of each kind in turn."""
    rng = random.Random("answers")
    tables = {name: runpy.run_path(str(CASES / name)) for name in TABLES}  # lists of pairs, and nothing else
    cases = [pair for name, lists in TABLES.items() for chosen in lists for pair in tables[name][chosen]]
    found = dict.fromkeys((answer, expected) for answer, expected in cases if len(answer) < 1_000)
    while len(found) < count:
        found.update(dict.fromkeys(KINDS[rng.randrange(len(KINDS))](rng)))
    return list(found)[:count]


def decision_of_math_verify(answer: str, expected: str) -> bool | None:
    """Decision of math-verify as its documents show it, with its own time-outs."""
    from math_verify import parse, verify

    def read(text: str) -> list:
        delimited = any(sign in text for sign in ("$", r"\(", r"\[", r"\boxed"))
        return parse(text if delimited else f"${text}$", parsing_timeout=DIRECT_S)

    gold, target = read(expected), read(answer)
    return verify(gold, target, timeout_seconds=DIRECT_S) if gold and target else None


def rewarded(reward: Reward, all_pairs: list[Pair]) -> tuple[list[RewardResult], float]:
    """Results of all pairs, and the time in seconds."""
    write = ANSWER_FORMS["answer"].write
    samples = [(write(answer), Question("", "", expected, "")) for answer, expected in all_pairs]
    reward("<answer>1+1</answer>", Question("", "", "2", ""))
    started = time.perf_counter()
    results = [reward(response, question) for response, question in samples]
    return results, time.perf_counter() - started


def measure(count: int) -> tuple[list[Decision], dict[str, float]]:
    """Decisions about all pairs, and the time of each reward in seconds."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    chosen = pairs(count)
    plain_s = min(rewarded(resolve_reward("answer"), chosen)[1] for _ in range(3))
    results, math_s = rewarded(resolve_reward("math"), chosen)
    decided = []
    started = time.perf_counter()
    direct = [decision_of_math_verify(answer, expected) for answer, expected in chosen]
    direct_s = time.perf_counter() - started
    for (answer, expected), result, verdict in zip(chosen, results, direct, strict=True):
        exact = same_answer(answer, expected)
        by_value = not exact and is_compared_by_value(answer, expected)
        decided.append(Decision(answer, expected, exact, by_value, result.reward, result.undecided, verdict))
    return decided, {"answer": plain_s, "math": math_s, "math-verify directly": direct_s}


def differing(decisions: list[Decision]) -> list[Decision]:
    return [one for one in decisions if one.direct is not None and bool(one.reward) != one.direct]


def counts(decisions: list[Decision]) -> dict[str, str]:
    """Numbers of pairs, in words for the page."""
    answered = [one for one in decisions if one.direct is not None]
    sent = [one for one in answered if one.compared_by_value]
    agree, apart = sum(bool(one.reward) == one.direct for one in sent), len(differing(decisions))
    alone = sum(not (one.exact or one.compared_by_value) for one in decisions)
    return {
        "settled as the same by the exact comparison": f"{sum(one.exact for one in decisions):,}",
        "compared by math-verify": f"{sum(one.compared_by_value for one in decisions):,}",
        "of words or long, compared exactly alone": f"{alone:,}",
        "not compared in time": f"{sum(one.undecided for one in decisions):,}",
        "that math-verify answers when it is called directly": f"{len(answered):,}",
        "of these compared by math-verify in the reward: the same decision": f"{agree:,} of {len(sent):,}",
        "of all that it answers: the same decision": f"{len(answered) - apart:,} of {len(answered):,}",
    }


def report(decisions: list[Decision], seconds: dict[str, float]) -> list[str]:
    """The page: agreement, throughput, and every pair on which the two differ."""
    apart = differing(decisions)
    reasons = Counter(reason(one) for one in apart)
    return [
        "# Answers by value",
        "",
        f"`reward=math` on {len(decisions):,} pairs of answers, beside math-verify called directly "
        "(`python -m benchmarks.answers`).",
        "",
        "| pairs | |",
        "|---|---|",
        *(f"| {name} | {number} |" for name, number in counts(decisions).items()),
        "",
        "| reward | answers/s |",
        "|---|---|",
        *(f"| {name} | {len(decisions) / spent_s:,.0f} |" for name, spent_s in seconds.items()),
        "",
        "## Different decisions",
        "",
        *(f"* {text}: {number}" for text, number in reasons.most_common()),
        "",
        "| answer | expected | reward | math-verify |",
        "|---|---|---|---|",
        *(f"| {cell(one.answer)} | {cell(one.expected)} | {one.reward:g} | {one.direct:g} |" for one in apart),
    ]


def reason(one: Decision) -> str:
    """Cause of a decision that is not math-verify's."""
    if one.undecided:
        return "not compared in time"
    if one.exact:
        return "the same by the rules of the exact comparison, and not to math-verify"
    return "compared by math-verify" if one.compared_by_value else "words, which math-verify reads as products"


def cell(text: str) -> str:
    """A text in a cell of a table; one of more than 60 characters is cut."""
    shown = ascii(text)[1:-1].replace("\\\\", "\\").replace("|", "\\|").replace("`", "'")
    return f"`{shown[:60]}{'…' if len(shown) > 60 else ''}`"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    decisions, seconds = measure(arguments.pairs)
    different = [asdict(one) for one in differing(decisions)]
    raw = {"pairs": len(decisions), "seconds": seconds, "counts": counts(decisions), "different": different}
    save(arguments.out, "answers-cpu", raw, report(decisions, seconds))


if __name__ == "__main__":
    main()
