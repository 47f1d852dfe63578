"""Simulated engines for the real driver: they sleep as long as a cluster's would work. No figure of these is a
measurement of an engine; what is measured is what driver, actors and hand-over cost beside it.

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

from demopsd_dist.data.records import Prompt, Rollout, ScoredExample, StepReport, Tokens, TrainBatch, TrainingExample
from demopsd_dist.methods import Forwards
from demopsd_dist.training.roles import Sampling

TOP_K = 4


@dataclass(frozen=True)
class StageTimes:
    """Seconds. A group takes `group_s` on average, log-normally distributed: `spread` is the deviation of its
    logarithm, 0 for none."""

    group_s: float
    deviation: float
    score_s: float  # of a whole step's examples
    learn_s: float
    publish_s: float


def group_seconds(times: StageTimes, name: str) -> float:
    """The same for the same name, whoever samples it."""
    draw = random.Random(name).gauss(0.0, 1.0)
    return times.group_s * math.exp(times.deviation * draw - times.deviation**2 / 2)


def responses(prompt: Prompt, sampling: Sampling, version: int, worker: int) -> list[Rollout]:
    rollouts = []
    for sample in range(sampling.samples):
        right = random.Random(f"{sampling.seed}/{prompt.id}/{sample}").random() < 0.5
        text = f"<answer>{prompt.question.answer if right else 'none'}</answer>"
        tokens_T = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
        logp_T = np.full(len(tokens_T), -0.5, np.float32)
        version_T = np.full(len(tokens_T), version, np.int32)
        rollouts.append(Rollout(prompt, sample, tokens_T, logp_T, text, False, version_T, worker))
    return rollouts


class SimulatedRollout:
    """An asyncio actor, as the real one is; groups under way do not slow each other down."""

    def __init__(self, rank: int, times: StageTimes) -> None:
        self.rank, self._times, self._version = rank, times, 0

    async def start(self) -> None:
        pass

    async def mark_version(self, version: int) -> None:
        self._version = version

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        version = self._version
        seconds = (group_seconds(self._times, f"{sampling.seed}/{prompt.id}") for prompt in prompts)
        await asyncio.sleep(sum(seconds))
        return [responses(prompt, sampling, version, self.rank) for prompt in prompts]


class Stateless:
    """There is nothing to keep."""

    async def save(self, folder: Path) -> None:
        folder.mkdir()

    async def load(self, folder: Path) -> None:
        pass


@dataclass
class SimulatedTeacher(Stateless):
    times: StageTimes
    lessons_per_step: int

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        assert supports_TK is not None
        await asyncio.sleep(self.times.score_s * len(examples) / self.lessons_per_step)
        found = []
        for example, support_TK in zip(examples, supports_TK, strict=True):
            values_TA = np.zeros((example.response_length_tokens, TOP_K + 1), np.float32)
            found.append(ScoredExample(example, support_TK, values_TA, values_TA))
        return found

    def figures(self) -> dict[str, float]:
        return {}


@dataclass
class SimulatedLearners(Stateless):
    times: StageTimes
    dp_size: int = 8

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens]:
        return [np.zeros((example.response_length_tokens, TOP_K), np.int32) for example in examples]

    async def step(self, batch: TrainBatch) -> StepReport:
        await asyncio.sleep(self.times.learn_s)
        return StepReport({"learner/loss": 0.0}, stepped=True)

    async def export(self, folder: Path) -> None:
        raise NotImplementedError("there is no model to export")
