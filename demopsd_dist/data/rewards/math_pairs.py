"""Comparison of two answers by math-verify, imported by the process of the reward `math` alone.

math-verify's own time limits are off: it catches their exception itself, and then answers "not the same".
"""

from __future__ import annotations

import json
import logging
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from types import FrameType

from math_verify import parse, verify

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards.own_reward import NoRewardError

MEMORY_BYTES = 2 << 30
"""Memory that a comparison may take beyond that of the process at its start."""
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
    """The decision of math-verify about two answers, without a time limit; False where it can read only one of them."""
    return verify(list(_parsed_expected(expected)), _parsed(answer), timeout_seconds=None)


@lru_cache(maxsize=1_000)
def _parsed_expected(text: str) -> tuple:
    return tuple(_parsed(text))


def _parsed(text: str) -> list:
    """Expressions of an answer, which is a formula as a whole unless it delimits one."""
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
