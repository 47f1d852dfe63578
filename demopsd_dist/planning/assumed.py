"""Efficiencies and overheads by stage, and what processes hold before there is a model, where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from demopsd_dist.planning.load import Coefficients

STAGES = ("sample", "support", "score", "learn", "publish", "driver")

# For GPUs, measured on none here. Decoding reaches about two thirds of the memory's rate, training about 40 % of the
# tensor units', links 70 % of theirs; an engine's step costs the processor some milliseconds, and some microseconds a
# sequence.
ASSUMED = {
    "sample": Coefficients(0.65, call_s=4e-3, item_s=1e-5),
    "support": Coefficients(0.4, link=0.7, call_s=2e-2),
    "score": Coefficients(0.5, call_s=2e-2),
    "learn": Coefficients(0.4, link=0.7, call_s=5e-2),
    "publish": Coefficients(0.2, link=0.2, call_s=0.1),
    "driver": Coefficients(1.0, call_s=0.05, item_s=5e-4),
}
ASSUMED_MEMORY = {"rollout": (2.0, 1.0), "teacher": (1.5, 1.2), "learner": (2.5, 1.2)}  # base_gib, factor


@dataclass(frozen=True)
class Calibration:
    """`memory` has base_gib and the factor of what passes, by role."""

    stages: Mapping[str, Coefficients]
    memory: Mapping[str, tuple[float, float]]
    source: str = "assumed, not measured"


UNCALIBRATED = Calibration(ASSUMED, ASSUMED_MEMORY)
