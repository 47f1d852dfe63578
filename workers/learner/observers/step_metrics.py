"""What a rank's step says: sums, maxima and distributions over its slices, single tokens of some rollouts, digests."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demopsd_dist.data.records import TokenRecord
from demopsd_dist.objective import Loss
from demopsd_dist.run_record.digests import Digests
from workers.learner.observers.step_digests import StepDigests
from workers.learner.observers.token_recorder import TokenRecorder


@dataclass
class RankReport:
    """`sums` of all ranks add up to means over the batch's tokens; of `maxima` the largest counts; `distributions` hold a
    value for each token of the rank."""

    stepped: bool
    sums: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    distributions: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, TokenRecord] = field(default_factory=dict)  # by rollout id
    digests: Digests = field(default_factory=dict)


class StepMetrics:
    """What the slices of a step say, kept on the device until the step is done: no slice waits for a transfer."""

    def __init__(self, tracer: StepDigests | None = None) -> None:
        self.tracer = tracer
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.maxima: dict[str, Tensor] = {}
        self.distributions: dict[str, list[Tensor]] = defaultdict(list)
        self.token_recorders: list[TokenRecorder] = []

    def add(self, loss: Loss) -> None:
        for name, value in loss.metrics.items():
            self.more(name, value)
        for name, value in loss.distributions.items():
            self.distributions[name].append(value)

    def more(self, name: str, value: Tensor) -> None:
        self.sums[name] = value + self.sums[name].to(value.device)

    def gradient_seen(self, engine: Any) -> AbstractContextManager[None]:
        return nullcontext() if self.tracer is None else self.tracer.gradient_seen(engine)

    def largest(self, name: str, value: Tensor) -> None:
        self.maxima[name] = torch.maximum(self.maxima.get(name, value), value)  # keeps a NaN

    def report(self) -> RankReport:
        return RankReport(
            stepped=True,
            sums={name: float(value) for name, value in self.sums.items()},
            maxima={name: float(value) for name, value in self.maxima.items()},
            distributions={name: torch.cat(parts).float().cpu().numpy() for name, parts in self.distributions.items()},
            tables={
                name: table
                for token_recorder in self.token_recorders
                for name, table in token_recorder.tables().items()
            },
        )
