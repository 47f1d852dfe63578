"""95 % intervals of few values: Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # by degrees of freedom


def student_t(degrees: float) -> float:
    """Its 97.5 % quantile; of degrees that are not whole, that of the next lower whole ones, which is wider."""
    whole = max(1, math.floor(degrees))
    return _T975[whole - 1] if whole <= len(_T975) else 1.96 + 2.5 / whole


def half_width(values: Sequence[float]) -> float:
    """Of the interval of a mean. Infinite for one value."""
    if len(values) < 2:
        return float("inf")
    return student_t(len(values) - 1) * stdev(values) / len(values) ** 0.5


@dataclass(frozen=True)
class RatioInterval:
    """Of two means, with its interval."""

    value: float
    low: float
    high: float

    @property
    def leaves_out_one(self) -> bool:
        return not self.low <= 1.0 <= self.high


def _ratio(log_value: float, half: float) -> RatioInterval:
    if half == float("inf"):
        return RatioInterval(math.exp(log_value), 0.0, half)
    return RatioInterval(*(math.exp(log_value + part) for part in (0.0, -half, half)))


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> RatioInterval:
    """Of the geometric means of `values` to `others`, measured in pairs, one after the other: what slows both does
    not count. All above zero."""
    logs = [math.log(value / other) for value, other in zip(values, others, strict=True)]
    return _ratio(fmean(logs), half_width(logs))


def independent_ratio(values: Sequence[float], others: Sequence[float]) -> RatioInterval:
    """The same of values that have nothing to do with each other (Welch's t on logarithms)."""
    logs, other_logs = ([math.log(value) for value in side] for side in (values, others))
    difference = fmean(logs) - fmean(other_logs)
    if min(len(logs), len(other_logs)) < 2:
        return _ratio(difference, float("inf"))
    parts = [variance(side) / len(side) for side in (logs, other_logs)]
    if not sum(parts):
        return _ratio(difference, 0.0)
    weights = [part**2 / (len(side) - 1) for part, side in zip(parts, (logs, other_logs), strict=True)]
    return _ratio(difference, student_t(sum(parts) ** 2 / sum(weights)) * sum(parts) ** 0.5)
