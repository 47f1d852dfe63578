"""The system's nouns. The driver knows these four roles and nothing behind them: Ray actors in `workers/`, stand-ins in
`testing.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from demopsd_dist.data.records import Prompt, Rollout, ScoredExample, StepReport, Tokens, TrainBatch, TrainingExample
from demopsd_dist.methods import Forwards
from demopsd_dist.run_record.timeline import Track


@dataclass(frozen=True)
class Sampling:
    """How to sample. `seed` and a rollout's id fix its tokens, whichever worker draws them and in whatever company."""

    samples: int
    temperature: float
    top_p: float
    max_response_tokens: int
    seed: str


class Rollouts(Protocol):
    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        """Each prompt's `sampling.samples` responses as soon as they are all there, with the prompt's index.

        A caller that stops early closes the iterator, and what is still being sampled is dropped.
        """
        ...

    def figures(self) -> dict[str, float]:
        """What the workers did since the last call, for the metrics."""
        ...

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """`sampling.samples` responses for each prompt, in the order of the prompts."""
        ...


class Teacher(Protocol):
    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        """Log-probabilities on each example's support: without and with the privileged view, as `forwards` asks.

        Without `supports_TK` it is the reference's own top k.
        """
        ...

    def figures(self) -> dict[str, float]:
        """What the workers did since the last call, for the metrics."""
        ...

    async def save(self, folder: Path) -> None:
        """Put the weights that are the teacher's alone into a folder that is made for them."""
        ...

    async def load(self, folder: Path) -> None:
        """Take up what `save` put there, in a teacher that has just been started."""
        ...


class Learners(Protocol):
    dp_size: int

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens] | None:
        """The method's support ids (T, K) at every response token of each example, in order; None where the teacher
        chooses them."""
        ...

    async def step(self, batch: TrainBatch) -> StepReport:
        """Loss, backward, one optimizer step.

        Raises:
            NonFiniteLossError: on every rank alike, before the step.
            LostStateError: a rank is gone.
        """
        ...

    async def save(self, folder: Path) -> None:
        """Put weights, optimizer and step into a folder that is made for them; it fits any number of ranks and any
        ZeRO stage."""
        ...

    async def load(self, folder: Path) -> None:
        """Take up what `save` put there, in learners that have just been started."""
        ...

    async def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face model folder."""
        ...


class WeightPublishing(Protocol):
    async def publish(self, version: int, *, moved: bool = True) -> None:
        """Bring the learners' weights to the rollout workers, and to the teacher, which applies its EMA.

        Version 0 resets the teacher to the student. `moved=False` says that the step learned nothing: then only the
        version is new. Returns when every receiver has confirmed.

        Raises:
            WeightSyncError: what arrived is not what was sent.
            LostStateError: a learner or the teacher is gone.
        """
        ...


async def no_tracks(start_s: float) -> list[Track]:
    return []


@dataclass(frozen=True)
class Roles:
    """The roles, and what starts learners and teacher anew where one of them was lost: from the model folder, their
    `load` and a publish to follow. Rollout workers are replaced by themselves.

    `tracks` tells what each worker was busy with since a moment of the driver's monotonic clock.
    """

    rollouts: Rollouts
    teacher: Teacher
    learners: Learners
    weights: WeightPublishing
    restart: Callable[[], Awaitable[None]]
    tracks: Callable[[float], Awaitable[list[Track]]] = no_tracks
