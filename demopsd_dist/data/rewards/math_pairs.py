"""Comparison of two answers by math-verify, imported by the process of the reward `math` alone.

math-verify's own time limits are off: it catches their exception itself, and then answers "not the same".
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from types import FrameType

from math_verify import parse, verify
from sympy import Expr, Float, N

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards.latex_spelling import with_roots
from demopsd_dist.data.rewards.own_reward import NoRewardError

MEMORY_BYTES = 2 << 30
"""Memory that a comparison may take beyond that of the process at its start."""
SMALL, NOISE = 1e-3, 1e-100
"""Numbers between these are compared by their first digits too: math-verify rounds to six places after the point, which
makes one of any two numbers below a millionth."""
DECIMAL_DIFFERENCE, EXACT_DIFFERENCE = 2e-5, 2e-3
"""Largest relative difference of two such numbers: of two decimal numbers, and where one is exact, such as 1/3600 and
0.000278."""
_FRACTION_SIGNS = str.maketrans(
    {
        sign: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", sign).split("\u2044"))
        for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
    }
)
_MIXED_NUMBER = re.compile(r"(?<![\w.,/^}])([0-9]{1,9}) +([0-9]{1,9})/([0-9]{1,9})(?![0-9.,/])")
_SCIENTIFIC = re.compile(r" *([+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE][+-]?[0-9]{2})))[eE]([+-]?[0-9]{1,3}) *")
"""A number such as `1.6e-19`; `2e-1` is Euler's number in a formula."""
_DELIMITERS = ("$", r"\(", r"\[", r"\boxed")

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it logs each comparison that has no limit, and each failure


class ComparisonTimeout(BaseException):
    """The end of a comparison that takes too long. No `Exception`: sympy and math-verify catch those."""


def compare(request: str, question: Question) -> float:
    """1.0 where math-verify takes the answer for the question's expected one.

    Args:
        request: JSON with `answer` and `limit_s`, the time limit in seconds of processor time, which a busy machine
            does not shorten.

    Raises:
        NoRewardError: the comparison takes longer.
    """
    _limit_memory()
    values = json.loads(request)
    try:
        with _time_limit(values["limit_s"]):
            return float(same_by_value(values["answer"], question.answer))
    except ComparisonTimeout:
        raise NoRewardError(
            f"by comparing for more than limits.math_s={values['limit_s']:g} s of processor time."
        ) from None


def same_by_value(answer: str, expected: str) -> bool:
    """The decision of math-verify about two answers, without a time limit; False where it can read only one of them, or
    where both are small numbers that differ in their first digits."""
    wanted, found = list(_parsed_expected(expected)), _parsed(answer)
    return verify(wanted, found, timeout_seconds=None) and not _differ_in_digits(wanted, found)


def _differ_in_digits(wanted: list, found: list) -> bool:
    """True where both are a number below `SMALL` and no pair of readings agrees in its first digits."""
    numbers, others = ([one for one in readings if _is_number(one)] for readings in (wanted, found))
    return bool(numbers and others) and all(_differ(one, other) for one in numbers for other in others)


def _differ(one: Expr, other: Expr) -> bool:
    value, other_value = N(one, 15), N(other, 15)
    size = max(abs(value), abs(other_value))
    allowed = DECIMAL_DIFFERENCE if one.has(Float) and other.has(Float) else EXACT_DIFFERENCE
    return bool(NOISE < size < SMALL and abs(value - other_value) > allowed * size)


def _is_number(reading: object) -> bool:
    return isinstance(reading, Expr) and reading.is_number and reading.is_finite is True


@lru_cache(maxsize=1_000)
def _parsed_expected(text: str) -> tuple:
    return tuple(_parsed(text))


def _parsed(text: str) -> list:
    r"""Expressions of an answer, which is a formula as a whole unless it delimits one.

    Spellings that math-verify does not know, or takes for another number, are LaTeX's before: `1 1/2` and `1½` are
    `1\frac{1}{2}`, `√12` is `\sqrt{12}`, `1e-19` is `1\times 10^{-19}`.
    """
    text = with_roots(_MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", text.translate(_FRACTION_SIGNS)))
    if match := _SCIENTIFIC.fullmatch(text.strip("$")):
        text = f"{match[1]}\\times 10^{{{match[2]}}}"
    delimited = any(delimiter in text for delimiter in _DELIMITERS)
    return parse(text if delimited else f"${text}$", parsing_timeout=None)


@contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise ComparisonTimeout

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@cache
def _limit_memory() -> None:
    """Bound the memory of this process: a number with billions of digits then fails one comparison, not the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit, hard = pages * resource.getpagesize() + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


same_by_value("x^2 + 2x + 1", r"\frac{(x + 1)^2}{1}")  # the first comparison builds grammars, which takes seconds
