"""Roofline model: seconds of a stage from its work, the device's full rates, and the share of them that is reached.

A stage is a list of phases. Each takes as long as the slower of its computation and its memory traffic at the device's
full rates; communication comes on top. `Coefficients` turn that into seconds: the fraction of the full rate reached by
attention, by passes over all weights and by the rest, and the overhead of calls, layers and items. They are fitted to
measurements (`calibration.py`) or assumed (`ASSUMED`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.planning.hardware import GB, Device

Floats = NDArray[np.float64]
STAGES = ("sample", "support", "score", "learn", "publish", "driver")


@dataclass(frozen=True)
class Power:
    """Computing power of one worker: a number of GPUs, or of CPU cores."""

    device: Device
    devices: float = 1.0

    def seconds(self, precision: str, flops: Floats | float, moved_bytes: Floats | float) -> Floats:
        """Element-wise maximum of compute time and memory time at full rates."""
        compute = np.asarray(flops, float) / (self.device.flops(precision) * self.devices)
        return np.maximum(compute, np.asarray(moved_bytes, float) / (self.device.memory_gb_per_s * GB * self.devices))


@dataclass(frozen=True)
class Load:
    """Work of one worker in a stage, in seconds at full rates, and counts of its overheads. The slowest worker's load
    decides when the stage ends."""

    roofline_s: float = 0.0  # all work except attention and weights
    attention_s: float = 0.0  # attention over whole sequences
    weights_s: float = 0.0  # memory passes over weights, gradients and moments, outside of matrix products
    sent_s: float = 0.0  # communication with other workers at the full link rate
    calls: float = 0.0  # calls of the engine or model
    layers: float = 0.0  # calls times layers
    items: float = 0.0  # sequences or samples

    def __add__(self, other: Load) -> Load:
        return Load(*(value + other_value for value, other_value in zip(self.features, other.features, strict=True)))

    @property
    def features(self) -> tuple[float, ...]:
        return (
            self.roofline_s,
            self.attention_s,
            self.weights_s,
            self.sent_s,
            self.calls,
            self.layers,
            self.items,
        )


@dataclass(frozen=True)
class Coefficients:
    """Efficiencies (reached over full rate) and overheads of a stage.

    Seconds = roofline_s / efficiency + attention_s / attention + weights_s / weights + sent_s / link
    + calls * call_s + layers * layer_s + items * item_s.
    """

    efficiency: float
    attention: float
    weights: float
    link: float = 1.0
    call_s: float = 0.0
    layer_s: float = 0.0
    item_s: float = 0.0

    def seconds(self, load: Load) -> float:
        return (
            load.roofline_s / self.efficiency
            + load.attention_s / self.attention
            + load.weights_s / self.weights
            + load.sent_s / self.link
            + load.calls * self.call_s
            + load.layers * self.layer_s
            + load.items * self.item_s
        )


@dataclass(frozen=True)
class Calibration:
    """Coefficients by stage; for each role, GiB of a process before it works, and the ratio of
    measured to counted transient memory."""

    stages: Mapping[str, Coefficients]
    memory: Mapping[str, tuple[float, float]]
    source: str = "assumed, not measured"


# For GPUs. Support, scoring, learning and publishing are as measured on one H100 with a model of 0.6 billion parameters
# (benchmarks/results/one-gpu.md); larger ones should reach more. Guessed: decoding reaches two thirds of the memory
# bandwidth, links 70 % of theirs, and an engine's step costs 4 ms plus 10 microseconds a sequence.
ASSUMED = {
    "sample": Coefficients(0.65, 0.65, 0.65, link=0.7, call_s=4e-3, item_s=1e-5),
    "support": Coefficients(0.33, 0.33, 0.33, link=0.7, call_s=2e-2),
    "score": Coefficients(0.22, 0.22, 0.22, call_s=2e-2),
    "learn": Coefficients(0.25, 0.25, 0.8, link=0.7, call_s=5e-2),
    "publish": Coefficients(0.02, 0.02, 0.02, link=0.02, call_s=0.1),
    "driver": Coefficients(1.0, 1.0, 1.0, call_s=0.05, item_s=5e-4),
}
ASSUMED_MEMORY = {"rollout": (2.0, 1.0), "teacher": (1.5, 1.2), "learner": (2.5, 1.2)}  # base_gib, factor
UNCALIBRATED = Calibration(ASSUMED, ASSUMED_MEMORY)
