"""Work and what it takes: a roofline, and how much of it is reached.

A stage is a list of phases; each takes as long as the slower of its computation and its traffic to memory, were the
device's rates reached; what goes to others comes on top. `Coefficients` turn that into seconds: the shares that are
reached, each of its own for attention, for passes over all weights and for the rest, and what calls, layers and items
cost beside it. They are measured (`calibration.py`) or assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.planning.hardware import GB, Device

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Power:
    """What a worker computes with: a device, or some cores of a CPU."""

    device: Device
    devices: float = 1.0

    def seconds(self, precision: str, flops: Floats | float, moved_bytes: Floats | float) -> Floats:
        """The slower of the two at full rates, element by element."""
        compute = np.asarray(flops, float) / (self.device.flops(precision) * self.devices)
        return np.maximum(compute, np.asarray(moved_bytes, float) / (self.device.memory_gb_per_s * GB * self.devices))


@dataclass(frozen=True)
class Load:
    """A worker's part of a stage. The stage is over when the slowest worker is."""

    roofline_s: float = 0.0  # but for the next two
    attention_s: float = 0.0  # of tokens to each other, where whole sequences are computed
    weights_s: float = 0.0  # passes over all weights, their gradients and moments, beside the products
    sent_s: float = 0.0  # to and from the others, at the full rate of the links
    calls: float = 0.0  # of the engine or model
    layers: float = 0.0  # calls times layers
    items: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(*(one + another for one, another in zip(self.features, other.features, strict=True)))

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
    """Seconds = roofline_s / efficiency + attention_s / attention + weights_s / weights + sent_s / link
    + calls call_s + layers layer_s + items item_s."""

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
