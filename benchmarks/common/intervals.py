"""95 % confidence intervals of few values, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # by degrees of freedom


def student_t(degrees: float) -> float:
    """The 97.5 % quantile of Student's t. Fractional degrees of freedom are rounded down, which widens the interval."""
    rounded = max(1, math.floor(degrees))
    return _T975[rounded - 1] if rounded <= len(_T975) else 1.96 + 2.5 / rounded


def half_width(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of a mean. Infinite for one value."""
    if len(values) < 2:
        return float("inf")
    return student_t(len(values) - 1) * stdev(values) / len(values) ** 0.5


def half_width_of_average(groups: Sequence[Sequence[float]]) -> float:
    """Half-width of the 95 % interval of the average of the groups' means, each counting once. Infinite if a group has
    one value."""
    if min(map(len, groups)) < 2:
        return float("inf")
    error = sum(variance(values) / len(values) for values in groups) ** 0.5 / len(groups)
    return student_t(sum(len(values) - 1 for values in groups)) * error


@dataclass(frozen=True)
class RatioInterval:
    """Ratio of two means, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def leaves_out_one(self) -> bool:
        """True if the interval does not contain 1."""
        return not self.low <= 1.0 <= self.high


def _ratio(log_value: float, log_half_width: float) -> RatioInterval:
    if log_half_width == float("inf"):
        return RatioInterval(math.exp(log_value), 0.0, log_half_width)
    return RatioInterval(*(math.exp(log_value + offset) for offset in (0.0, -log_half_width, log_half_width)))


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> RatioInterval:
    """Ratio of the geometric means of `values` to `others`. Pairs were measured one after the other, so that a slowdown
    of both cancels out. All values must be above zero."""
    logs = [math.log(value / other) for value, other in zip(values, others, strict=True)]
    return _ratio(fmean(logs), half_width(logs))


def independent_ratio(values: Sequence[float], others: Sequence[float]) -> RatioInterval:
    """Ratio of the geometric means of independent values (Welch's t on logarithms)."""
    logs, other_logs = ([math.log(value) for value in side] for side in (values, others))
    difference = fmean(logs) - fmean(other_logs)
    if min(len(logs), len(other_logs)) < 2:
        return _ratio(difference, float("inf"))
    errors = [variance(side) / len(side) for side in (logs, other_logs)]  # squared standard errors
    if not sum(errors):
        return _ratio(difference, 0.0)
    weights = [error**2 / (len(side) - 1) for error, side in zip(errors, (logs, other_logs), strict=True)]
    return _ratio(difference, student_t(sum(errors) ** 2 / sum(weights)) * sum(errors) ** 0.5)
