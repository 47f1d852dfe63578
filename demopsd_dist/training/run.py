"""A run: its settings, method, roles, task and records, and the state that training advances."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from demopsd_dist.config import Config
from demopsd_dist.data.dataset_solutions import DatasetSolutions
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import Reward
from demopsd_dist.methods import MethodSpec
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.ledger import Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.collapse import CollapseMonitor
from demopsd_dist.training.roles import Roles

T = TypeVar("T")


@dataclass(frozen=True)
class RunState:
    """Progress of a run. `step` counts the training steps done, and is the version of the learners' weights."""

    step: int = 0
    samples: int = 0

    @property
    def version(self) -> int:
        return self.step

    def after(self, samples: int) -> RunState:
        """The state after one more step, which trained on `samples` samples."""
        return replace(self, step=self.step + 1, samples=self.samples + samples)


@dataclass(frozen=True)
class Task:
    """The prompts to train and evaluate on, the builder of privileged prompts, the reward, and the data set's
    solutions that the teacher may see."""

    train: Sequence[Prompt]
    test: Sequence[Prompt]
    ood: Sequence[Prompt]
    prompts: PromptBuilder
    reward: Reward
    solutions: DatasetSolutions = field(default_factory=DatasetSolutions)


class StopRequest:
    """A request from outside, such as a signal, that the run save its state and end."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def request(self) -> None:
        self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    async def until_stopped(self, work: Awaitable[T]) -> T | None:
        """Result of the work; None, with the work cancelled, as soon as a stop is requested or if it already was."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            return None if stopping.done() else working.result()
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)


StageHook = Callable[[str, int, Any], Awaitable[None]]
"""Called when a step reaches a stage, with the stage's name, the step's number and the object at hand:

* `learn`: the `StepBatch`, before it is packed for the learners;
* `record`: the learners' `StepReport`, before anything of the step is recorded;
* `checkpoint`: the folder that the checkpoint is written to, before learners and teacher write into it.

Tests observe steps and plant faults with it: it may change the object, or raise.
"""


async def no_hook(stage: str, step: int, content: Any) -> None:
    pass


@dataclass(frozen=True)
class StageSpeed:
    """Cost of a token, and the peak of each role, of which a stage reaches a share.

    An operation is an addition or multiplication of a matrix product with weights: 2 a weight and token in a forward,
    twice that in a backward. Attention between tokens, padding, element-wise work and computing again (activation
    checkpointing) count as none, so a stage at its best stays below 1.

    Attributes:
        layer_flops: operations of a token's forward through all layers.
        head_flops: operations of the logits of one token.
        learn_passes: forwards that a forward with its backward is worth.
        peaks: operations/s of all workers of a role together, by role.
    """

    layer_flops: float
    head_flops: float
    learn_passes: float
    peaks: Mapping[str, float]

    def forward(self, tokens: int, predicted: int) -> float:
        """Operations of a forward over tokens, with the logits of some of them."""
        return self.layer_flops * tokens + self.head_flops * predicted


@dataclass(frozen=True)
class Run:
    """Everything that the training loop works with. All of it is fixed for the run; `RunState` is what advances."""

    cfg: Config
    method: MethodSpec
    roles: Roles
    task: Task
    log: RunLog
    ledger: Ledger
    checkpoints: Checkpoints
    alarm: CollapseMonitor
    stop: StopRequest = field(default_factory=StopRequest)
    on_stage: StageHook = no_hook
    speed: StageSpeed | None = None  # None: no utilisation is recorded

    def is_due(self, every_steps: int, state: RunState) -> bool:
        """True after every `every_steps` steps and after the last; never if `every_steps` is 0."""
        return every_steps > 0 and (state.step % every_steps == 0 or state.step == self.cfg.steps)

    def is_saved(self, state: RunState) -> bool:
        """True if the state can be restored: from a checkpoint, or before step 1 from the model folder."""
        return state.step == 0 or self.checkpoints.at(state.step) is not None
