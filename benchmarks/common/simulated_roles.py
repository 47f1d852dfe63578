"""Simulated engines for the real driver: they sleep as long as a cluster's engines would work. No figure of these runs
measures an engine; they measure the cost of driver, actors and dispatch.

`SimulatedRollout` is a Ray actor behind the real `RolloutGroup`; teacher, learners and weights are sleeps in the
driver's process.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demopsd_dist.data.records import (
    Logp,
    Prompt,
    Rollout,
    ScoredExample,
    StepReport,
    Tokens,
    TrainBatch,
    TrainingExample,
)
from demopsd_dist.methods import Forwards
from demopsd_dist.training.roles import Sampling

TOP_K = 4


@dataclass(frozen=True)
class StageTimes:
    """Simulated times of the stages, seconds.

    Attributes:
        group_s: mean time of a group, which is log-normally distributed.
        deviation: standard deviation of the logarithm of a group's time, 0 for none.
        score_s: time to score the examples of a whole step.
        learn_s: time of a learning step.
        publish_s: time of a publish.
    """

    group_s: float
    deviation: float
    score_s: float
    learn_s: float
    publish_s: float


def group_seconds(times: StageTimes, name: str) -> float:
    """Seconds that a group takes: drawn from its name, so that they do not depend on the worker."""
    draw = random.Random(name).gauss(0.0, 1.0)
    return times.group_s * math.exp(times.deviation * draw - times.deviation**2 / 2)


def simulated_responses(prompt: Prompt, sampling: Sampling, version: int, worker: int) -> list[Rollout]:
    """A group of responses, each correct with probability one half."""
    rollouts = []
    for sample in range(sampling.samples):
        right = random.Random(f"{sampling.seed}/{prompt.id}/{sample}").random() < 0.5
        text = f"<answer>{prompt.question.answer if right else 'none'}</answer>"
        tokens_T = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
        logp_T = np.full(len(tokens_T), -0.5, np.float32)
        version_T = np.full(len(tokens_T), version, np.int32)
        rollouts.append(Rollout(prompt, sample, tokens_T, logp_T, text, False, version_T, worker))
    return rollouts


def zero_support(examples: Sequence[TrainingExample]) -> list[Tokens]:
    """Support of `TOP_K` tokens with id 0 for each response token."""
    return [np.zeros((example.response_length_tokens, TOP_K), np.int32) for example in examples]


def zero_logp(examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None) -> list[tuple[Tokens, Logp]]:
    """Supports, those of `zero_support` unless they are given, with zeros on their ids and the tail."""
    supports_TK = zero_support(examples) if supports_TK is None else supports_TK
    return [(ids_TK, np.zeros((len(ids_TK), ids_TK.shape[1] + 1), np.float32)) for ids_TK in supports_TK]


class SimulatedRollout:
    """A rollout worker without an engine: an asyncio actor, in which concurrent groups do not slow each other down."""

    def __init__(self, rank: int, times: StageTimes) -> None:
        self.rank, self._times, self._version = rank, times, 0

    async def start(self) -> None:
        """Do nothing: there is no engine to start."""

    async def mark_version(self, version: int) -> None:
        """Label later responses with this version of the weights."""
        self._version = version

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """Sleep as long as sampling takes, and return a group for each prompt."""
        version = self._version
        seconds = (group_seconds(self._times, f"{sampling.seed}/{prompt.id}") for prompt in prompts)
        await asyncio.sleep(sum(seconds))
        return [simulated_responses(prompt, sampling, version, self.rank) for prompt in prompts]


class Stateless:
    """Role without state to save in a checkpoint."""

    async def save(self, folder: Path) -> None:
        """Make an empty checkpoint folder."""
        folder.mkdir()

    async def load(self, folder: Path) -> None:
        """Do nothing."""


@dataclass
class SimulatedTeacher(Stateless):
    """A teacher that sleeps and returns zeros."""

    times: StageTimes
    examples_per_step: int

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        """Sleep in proportion to the examples, and score them with zeros."""
        assert supports_TK is not None
        await asyncio.sleep(self.times.score_s * len(examples) / self.examples_per_step)
        scored = []
        for example, support_TK in zip(examples, supports_TK, strict=True):
            values_TA = np.zeros((example.response_length_tokens, TOP_K + 1), np.float32)
            scored.append(ScoredExample(example, support_TK, values_TA, values_TA))
        return scored

    def metrics(self) -> dict[str, float]:
        """No metrics."""
        return {}


@dataclass
class SimulatedLearners(Stateless):
    """Learners that sleep instead of learning."""

    times: StageTimes
    dp_size: int = 8

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens]:
        """Support of zeros."""
        return zero_support(examples)

    async def logp(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, top_k: int
    ) -> list[tuple[Tokens, Logp]]:
        """Zeros on the support."""
        return zero_logp(examples, supports_TK)

    async def step(self, batch: TrainBatch) -> StepReport:
        """Sleep as long as a learning step takes."""
        await asyncio.sleep(self.times.learn_s)
        return StepReport({"learner/loss": 0.0}, stepped=True)

    async def export(self, folder: Path) -> None:
        """Refuse: there is no model."""
        raise NotImplementedError("there is no model to export")
