"""Efficiencies and overheads by stage, and what processes hold before there is a model, where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from demopsd_dist.planning.roofline import Coefficients

STAGES = ("sample", "support", "score", "learn", "publish", "driver")

# For GPUs. Support, scoring, learning and publishing are as one H100 had them with a model of 0.6 billion parameters
# (benchmarks/results/one-gpu.md); larger ones should reach more. Not measured: decoding, about two thirds of the
# memory's rate; links, 70 % of theirs; some milliseconds of an engine's step, and some microseconds a sequence in it.
ASSUMED = {
    "sample": Coefficients(0.65, 0.65, 0.65, link=0.7, call_s=4e-3, item_s=1e-5),
    "support": Coefficients(0.33, 0.33, 0.33, link=0.7, call_s=2e-2),
    "score": Coefficients(0.22, 0.22, 0.22, call_s=2e-2),
    "learn": Coefficients(0.25, 0.25, 0.8, link=0.7, call_s=5e-2),
    "publish": Coefficients(0.02, 0.02, 0.02, link=0.02, call_s=0.1),
    "driver": Coefficients(1.0, 1.0, 1.0, call_s=0.05, item_s=5e-4),
}
ASSUMED_MEMORY = {"rollout": (2.0, 1.0), "teacher": (1.5, 1.2), "learner": (2.5, 1.2)}  # base_gib, factor


@dataclass(frozen=True)
class Calibration:
    """`memory` has base_gib and the factor of what passes, by role."""

    stages: Mapping[str, Coefficients]
    memory: Mapping[str, tuple[float, float]]
    source: str = "assumed, not measured"


UNCALIBRATED = Calibration(ASSUMED, ASSUMED_MEMORY)
