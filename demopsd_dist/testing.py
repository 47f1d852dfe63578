"""Stand-ins for the four roles, for tests of the driver without engines, models or waiting.

They share a `World`: the published version, and a list of the calls in order.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from demopsd_dist.data.records import (
    Logp,
    Prompt,
    Rollout,
    ScoredExample,
    StepReport,
    TokenRecord,
    Tokens,
    TrainBatch,
    TrainingExample,
)
from demopsd_dist.methods import Forwards
from demopsd_dist.run_record.profiling.operations import Operation, ProcessOperations
from demopsd_dist.run_record.profiling.timeline import Span, Track
from demopsd_dist.training.roles import Roles, Sampling
from demopsd_dist.util.errors import LostStateError

TOP_K = 4


@dataclass
class World:
    """State that the stand-ins share. `skill` is the initial chance of a right answer; it grows with each version."""

    published: int = -1
    diary: list[tuple[str, int]] = field(default_factory=list)  # (call, version or step)
    unchanged: list[int] = field(default_factory=list)  # versions published after a step without an optimizer update
    lost_at_steps: list[int] = field(default_factory=list)  # steps at which the learner dies, in order
    lost_restarts: int = 0  # number of restarts that fail, since a learner dies in them
    skill: float = 0.4
    never_done: set[str] = field(default_factory=set)  # prompts whose groups never finish

    def chance(self) -> float:
        return min(self.skill * (1 + 0.25 * max(self.published, 0)), 0.95)


@dataclass
class StandInRollouts:
    world: World

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        version = self.world.published
        self.world.diary.append(("sample", version))
        await asyncio.sleep(0)
        indexed = list(enumerate(prompts))
        random.Random(sampling.seed).shuffle(indexed)  # the order in which groups finish
        indexed.sort(key=lambda pair: pair[1].id in self.world.never_done)
        for index, prompt in indexed:
            if prompt.id in self.world.never_done:
                await asyncio.sleep(3600)
            yield index, [self._one(prompt, i, sampling, version) for i in range(sampling.samples)]

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        groups = {index: group async for index, group in self.stream(prompts, sampling)}
        return [groups[index] for index in range(len(prompts))]

    def metrics(self) -> dict[str, float]:
        return {}

    def _one(self, prompt: Prompt, sample: int, sampling: Sampling, version: int) -> Rollout:
        rng = random.Random(f"{sampling.seed}/{prompt.id}/{sample}")
        right = rng.random() < self.world.chance()
        text = f"<answer>{prompt.question.answer if right else 'no idea'}</answer>"
        tokens_T = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)[: sampling.max_response_tokens]
        return Rollout(
            prompt=prompt,
            sample=sample,
            tokens_T=tokens_T,
            logp_T=np.full(len(tokens_T), -0.5, dtype=np.float32),
            text=text,
            truncated=False,
            version_T=np.full(len(tokens_T), version, np.int32),
            worker=0,
        )


@dataclass
class StandInTeacher:
    world: World

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        assert supports_TK is not None
        self.world.diary.append(("score", self.world.published))
        await asyncio.sleep(0)
        return [
            ScoredExample(
                example,
                support_TK,
                None if forwards.reference is None else _values(support_TK, b""),
                None if forwards.teacher is None else _values(support_TK, example.privileged_tokens.tobytes()),
            )
            for example, support_TK in zip(examples, supports_TK, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        return {}

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "published.json").write_text(json.dumps(self.world.published))

    async def load(self, folder: Path) -> None:
        self.world.published = json.loads((folder / "published.json").read_text())


def _values(support_TK: Tokens, seed: bytes) -> Logp:
    """Random log-probabilities that depend on the seed alone."""
    rng = np.random.default_rng(list(seed))
    return np.log(rng.dirichlet(np.ones(TOP_K + 1), len(support_TK))).astype(np.float32)


def _token_record(item: ScoredExample) -> TokenRecord:
    """A token record of a student that equals the reference."""
    tokens = item.example.response_length_tokens
    some_T = np.random.default_rng(tokens).random(tokens, dtype=np.float32)
    reference_TK, teacher_TK = (
        None if logp is None else logp[:, :TOP_K].astype(np.float32)
        for logp in (item.reference_logp_TA, item.teacher_logp_TA)
    )
    student_TK = np.full((tokens, TOP_K), -1.5, np.float32) if reference_TK is None else reference_TK
    return TokenRecord(
        entropy_T=some_T,
        loss_T=some_T,
        distributions={"demopsd/alpha": 0.15 * some_T, "demopsd/disagreement_nats": 0.5 * some_T},
        candidate_TC=item.support_TK[:, :TOP_K],
        student_logp_TC=student_TK,
        reference_logp_TC=reference_TK,
        teacher_logp_TC=teacher_TK,
        target_logp_TC=teacher_TK,
    )


@dataclass
class StandInLearners:
    world: World
    dp_size: int = 2
    steps: int = 0  # steps done, including those before a checkpoint
    batches: list[TrainBatch] = field(default_factory=list)  # of all steps, repeated ones included

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens]:
        ids = np.arange(97, 97 + TOP_K, dtype=np.int32)
        return [np.tile(ids, (example.response_length_tokens, 1)) for example in examples]

    async def logp(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, top_k: int
    ) -> list[tuple[Tokens, Logp]]:
        supports_TK = await self.support(examples) if supports_TK is None else supports_TK
        return [(support_TK, _values(support_TK, bytes([self.steps % 251]))) for support_TK in supports_TK]

    async def step(self, batch: TrainBatch) -> StepReport:
        self.world.diary.append(("step", self.steps))
        if self.world.lost_at_steps and self.steps == self.world.lost_at_steps[0]:
            self.world.lost_at_steps.pop(0)
            raise LostStateError("the stand-in learner died as requested.")
        self.batches.append(batch)
        self.steps += 1
        if not batch.token_count:
            return StepReport({}, stepped=False)
        metrics = {"learner/loss": 1.0 / self.steps, "demopsd/alpha_mean": 0.05}
        recorded = [item for item in batch.items if item.id in batch.record_ids]
        token_records = {item.id: _token_record(item) for item in recorded}
        digests = {} if batch.digest_request is None else {"gradient": {"0": f"of step {self.steps}"}}
        metrics |= {"demopsd/disagreement_mean_nats": 0.03}
        return StepReport(metrics, stepped=True, token_records=token_records, digests=digests)

    async def export(self, folder: Path) -> None:
        folder.mkdir()

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "steps.json").write_text(json.dumps(self.steps))

    async def load(self, folder: Path) -> None:
        self.steps = json.loads((folder / "steps.json").read_text())


@dataclass
class StandInWeights:
    world: World

    async def publish(self, version: int, *, changed: bool = True) -> None:
        self.world.diary.append(("publish", version))
        if not changed:
            self.world.unchanged.append(version)
        self.world.published = version


@dataclass
class StandInProfiling:
    world: World

    async def tracks(self, start_s: float) -> list[Track]:
        return [Track("learner 0", [Span("step", start_s, start_s + 1e-3)])]

    async def start_operations(self) -> None:
        self.world.diary.append(("start_operations", self.world.published))

    def stop_operations(self) -> None:
        self.world.diary.append(("stop_operations", self.world.published))

    async def operations(self) -> list[ProcessOperations]:
        self.world.diary.append(("operations", self.world.published))
        return [ProcessOperations("learner 0", 2.0, [Operation("aten::mm", "2x3, 3x4", 5, 1.5, 240.0)], b"")]


def stand_in_roles(world: World) -> Roles:
    learners = StandInLearners(world)

    async def restart() -> None:
        world.diary.append(("restart", world.published))
        if world.lost_restarts:
            world.lost_restarts -= 1
            raise LostStateError("the stand-in learner died again as requested.")
        learners.steps = 0

    return Roles(
        StandInRollouts(world), StandInTeacher(world), learners, StandInWeights(world), restart, StandInProfiling(world)
    )
