"""The four roles that the training loop calls. Ray actor groups in `workers/` implement them, and stand-ins in
`testing.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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
from demopsd_dist.run_record.profiling.operations import ProcessOperations
from demopsd_dist.run_record.profiling.timeline import Track


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. `seed` and a rollout's id determine its tokens; the worker and its other requests have no
    influence. Without a seed they do (`rollout.request_seeds`)."""

    samples: int
    temperature: float
    top_p: float
    max_response_tokens: int
    seed: str | None


class Rollouts(Protocol):
    """Rollout workers: sample responses with the weights that were published last."""

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        """The `sampling.samples` responses of each prompt, with the prompt's index, in the order in which they finish.

        A caller that stops early closes the iterator; responses that are still being sampled are dropped.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics of the workers since the last call."""
        ...

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """Sample `sampling.samples` responses for each prompt, in the order of the prompts."""
        ...


class Teacher(Protocol):
    """Teacher workers: score examples with frozen or averaged copies of the student's weights."""

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        """Log-probabilities on each example's support, without and with the privileged view, as `forwards` requires.

        Without `supports_TK` the support is the reference's own top k.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics of the workers since the last call."""
        ...

    async def save(self, folder: Path) -> None:
        """Write the weights that only the teacher has into `folder`, which is created."""
        ...

    async def load(self, folder: Path) -> None:
        """Read the weights that `save` wrote, into a teacher that has just been started."""
        ...


class Learners(Protocol):
    """Learner ranks: train the student. `dp_size` is the number of data-parallel ranks."""

    dp_size: int

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens] | None:
        """The method's support ids (T, K) at every response token of each example, in order; None where the teacher
        chooses the support."""
        ...

    async def logp(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, top_k: int
    ) -> list[tuple[Tokens, Logp]]:
        """The support ids (T, K) of each example, and the student's log-probabilities (T, K + 1) on them and the tail.
        Where no `supports_TK` are given, the ids are the student's own `top_k` most likely ones."""
        ...

    async def step(self, batch: TrainBatch) -> StepReport:
        """Compute the loss and its gradient, and take one optimizer step.

        Raises:
            NonFiniteLossError: the loss is not finite; every rank raises it, before the step.
            LostStateError: a rank has died.
        """
        ...

    async def save(self, folder: Path) -> None:
        """Write weights, optimizer state and step into `folder`, which is created. Any number of ranks at any ZeRO
        stage can load it."""
        ...

    async def load(self, folder: Path) -> None:
        """Read the state that `save` wrote, into learners that have just been started."""
        ...

    async def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face model folder."""
        ...


class WeightPublishing(Protocol):
    """Publishing of the learners' weights to rollout workers and teacher."""

    async def publish(self, version: int, *, changed: bool = True) -> None:
        """Send the learners' weights to the rollout workers, and to the teacher, which updates its EMA.

        Version 0 resets the teacher to the student. `changed=False` means that the step changed no weights, and only
        the version is new. Returns when every receiver has acknowledged.

        Raises:
            WeightSyncError: the weights that arrived differ from those sent.
            LostStateError: a learner or the teacher has died.
        """
        ...


class Profiling(Protocol):
    """Profiles of the workers of all roles (docs/replay.md)."""

    async def tracks(self, start_s: float) -> list[Track]:
        """Spans of each worker since a time of the driver's monotonic clock."""
        ...

    async def start_operations(self) -> None:
        """Start to record the operations of torch in each worker."""
        ...

    def stop_operations(self) -> None:
        """Drop what is recorded."""
        ...

    async def operations(self) -> list[ProcessOperations]:
        """Operations of each worker since `start_operations`."""
        ...


class NoProfiling:
    """Profiles of workers that record nothing."""

    async def tracks(self, start_s: float) -> list[Track]:
        """Give no spans."""
        return []

    async def start_operations(self) -> None:
        """Record nothing."""

    def stop_operations(self) -> None:
        """Drop nothing."""

    async def operations(self) -> list[ProcessOperations]:
        """Give no operations."""
        return []


@dataclass(frozen=True)
class Roles:
    """The four roles of a run, their profiles, and `restart`.

    `restart` starts new learners and teacher from the model folder after one of them was lost; the caller then calls
    their `load` and publishes. Rollout workers are replaced without the driver.
    """

    rollouts: Rollouts
    teacher: Teacher
    learners: Learners
    weights: WeightPublishing
    restart: Callable[[], Awaitable[None]]
    profiling: Profiling = field(default_factory=NoProfiling)
