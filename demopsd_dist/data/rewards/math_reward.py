"""The reward `math`: the exact comparison first, then math-verify in a process that can be ended.

math-verify takes expressions by their value, `x^2+2x+1` and `(x+1)^2`. On some text sympy computes without end, so the
process beside the run compares pairs under a time limit, and is started again where it did not survive one.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import lru_cache, partial

from demopsd_dist.config import Limits
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards.comparison import plain_value, same_answer
from demopsd_dist.data.rewards.extraction import extract_formula
from demopsd_dist.data.rewards.own_reward import NoRewardError, OwnReward
from demopsd_dist.util.errors import ConfigError

MATH_CHARS = 1_000
"""Length of the longest answer that math-verify compares."""
KILL_FACTOR, KILL_AFTER_S = 5, 5.0
"""A process is killed that has not answered after `KILL_FACTOR` times `limits.math_s` plus `KILL_AFTER_S`. The limit is
of processor time: on a busy machine a comparison within it may take several times as long."""
INSTALL = "pip install math-verify==0.9.0"
_COMPARE = "demopsd_dist.data.rewards.math_pairs.compare"
_PAIRS = 20_000  # remembered results
_WORDS = re.compile(r"(?:[^\W\d_]|[-' ])*[^\W\d_]{3}(?:[^\W\d_]|[-' ])*")

_UNEQUAL = re.compile(r"\\neq?(?![A-Za-z])|≠|\\not ?=")
_TRANSPOSED = re.compile(r"(?<=[A-Z)\]}])\^ ?\{? ?(?:T|\\top|\\intercal)(?![A-Za-z])")
_PRIMES = re.compile(r"(?<=[A-Za-z)])(?:'+|′+|\^ ?\{? ?\\prime(?: ?\\prime)*)")
_LEFT_SIDE = re.compile(r"^[^=<>≤≥]{1,40}=")
_LABELS = (
    re.compile(r"(?<=[0-9])_\{?([0-9]{1,2})"),
    re.compile(r"(?<![A-Za-z])(thousand|million|billion|trillion)(?![A-Za-z])"),
)
"""Base of a number, and words for powers of a thousand, which math-verify drops too."""
_ORDER = re.compile(r"<|>|≤|≥|\\(?:leq?|geq?|lt|gt)(?![A-Za-z])")


class MathReward:
    """Reward of a response by the value of its answer: 1 or 0.

    Args:
        limits: `math_s` is the processor time of a comparison, `start_s` the time limit of the import of math-verify.

    Raises:
        ConfigError: math-verify is not installed, or cannot be imported in time.
    """

    def __init__(self, limits: Limits) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(f"reward=math needs math-verify, which is not installed. Install it: {INSTALL}")
        self.process = OwnReward(_COMPARE, limits.start_s, KILL_FACTOR * limits.math_s + KILL_AFTER_S)
        self._compare = lru_cache(maxsize=_PAIRS)(partial(_compare_in_process, self.process, limits.math_s))

    def __call__(self, response: str, question: Question) -> RewardResult:
        """Reward one response. A comparison that is not done in time gives 0 with `undecided`."""
        answer, expected = extract_formula(response), question.answer.strip()
        if answer is None:
            return RewardResult(0.0)
        if same_answer(answer, expected):
            return RewardResult(1.0)
        return self._compare(answer, expected) if is_compared_by_value(answer, expected) else RewardResult(0.0)


def _compare_in_process(process: OwnReward, limit_s: float, answer: str, expected: str) -> RewardResult:
    request = json.dumps({"answer": answer, "limit_s": limit_s})
    try:
        return process(request, Question(id="", text="", answer=expected, field=""))
    except NoRewardError:  # not done in time, or its process did not survive the pair
        return RewardResult(0.0, undecided=True)


def is_compared_by_value(answer: str, expected: str) -> bool:
    """True where math-verify compares a pair that is not the same by `same_answer`.

    Words are not: math-verify reads "listen" and "silent" as products of the same letters. Nor are answers of more than
    `MATH_CHARS` characters, nor answers that differ in what math-verify drops (`_differ_in_marks`).
    """
    if max(len(answer), len(expected)) > MATH_CHARS or _WORDS.fullmatch(expected):
        return False
    return not _differ_in_marks(answer, expected)


def _differ_in_marks(answer: str, expected: str) -> bool:
    r"""True where one of two answers has a sign that the other lacks (`x'` and `x`, `\neq 3` and `3`, `> 5` and `5`),
    or both have a base or a word for a power of a thousand, and another one (`101_2` and `101_3`)."""
    if ("=" in answer) != ("=" in expected):
        answer, expected = _LEFT_SIDE.sub("", answer), _LEFT_SIDE.sub("", expected)
    if _marks(answer) != _marks(expected):
        return True
    for label in _LABELS:
        found, wanted = label.findall(answer), label.findall(expected)
        if found and wanted and found != wanted:
            return True
    is_ordered, wants_order = (bool(_ORDER.search(text)) for text in (answer, expected))
    return is_ordered != wants_order and plain_value(expected if is_ordered else answer) is not None


def _marks(text: str) -> tuple[int, int, list[int]]:
    """Signs that change an expression and that math-verify drops: numbers of "not equal" and of transpositions, and of
    primes the length of each run."""
    primes = [run.count("\\prime") or len(run) for run in _PRIMES.findall(text)]
    return len(_UNEQUAL.findall(text)), len(_TRANSPOSED.findall(text)), primes
