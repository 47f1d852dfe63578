"""What a run is made of: where it stands, what it learns, and who and what takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from demopsd_dist.config import Config
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import Reward
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.ledger import Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.collapse import CollapseMonitor
from demopsd_dist.training.roles import Roles

T = TypeVar("T")


@dataclass(frozen=True)
class RunState:
    """Where a run stands. `step` counts the training steps done and is the version of the learners' weights."""

    step: int = 0
    samples: int = 0

    @property
    def version(self) -> int:
        return self.step

    def after(self, samples: int) -> RunState:
        return replace(self, step=self.step + 1, samples=self.samples + samples)


@dataclass(frozen=True)
class Task:
    """What to learn and how to mark it."""

    train: Sequence[Prompt]
    test: Sequence[Prompt]
    ood: Sequence[Prompt]
    prompts: PromptBuilder
    reward: Reward


class StopRequest:
    """A wish from outside, a signal for example, that the run end well and soon."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    async def before(self, work: Awaitable[T]) -> T | None:
        """What the work gives; or None, and the work cancelled, as soon as the run is asked to stop, if it has not
        been before."""
        working, asked = asyncio.ensure_future(work), asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
            return None if asked.done() else working.result()
        finally:
            asked.cancel()
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)


@dataclass(frozen=True)
class Run:
    cfg: Config
    roles: Roles
    task: Task
    log: RunLog
    ledger: Ledger
    checkpoints: Checkpoints
    alarm: CollapseMonitor
    stop: StopRequest = field(default_factory=StopRequest)
