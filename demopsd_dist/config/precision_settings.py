"""Precision of each role, and the bounds of rounding that belong to it."""

from __future__ import annotations

from dataclasses import dataclass

from demopsd_dist.config.role_settings import Precision
from demopsd_dist.config.schema import Config


@dataclass(frozen=True)
class LogpBounds:
    """Bounds of the differences between engine and learner in a token's log-probability, nats.

    Attributes:
        largest: of any token.
        typical: of the median over the tokens of the canary prompt, or of a step.
    """

    largest: float
    typical: float


BOUNDS = {Precision.float32: LogpBounds(1e-3, 1e-3), Precision.bfloat16: LogpBounds(3.0, 0.2)}
"""Bounds by precision. Those of bfloat16 are twice the largest difference, and the largest median of a prompt,
that `benchmarks.precision` measures on a model of 135 million parameters."""


def teacher_precision(config: Config) -> Precision:
    """Precision in which the teacher computes: its own setting, or the student's."""
    own = config.teacher.precision
    return config.model.precision if own is Precision.auto else own


def logp_bounds(config: Config) -> LogpBounds:
    """Bounds of the run: those that are set, and those of its precision for the others. Where the largest difference is
    set and the median is not, the median has no bound of its own. While `model.precision=auto` is still to be resolved
    (`demopsd_dist/models/precision.py`), they are the narrow ones of float32.
    """
    weights, measured = config.weights, BOUNDS.get(config.model.precision, BOUNDS[Precision.float32])
    largest, typical = weights.max_logp_diff, weights.typical_logp_diff
    if typical is None:
        typical = measured.typical if largest is None else largest
    return LogpBounds(measured.largest if largest is None else largest, typical)
