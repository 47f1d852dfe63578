"""Actors in this process behind the handles of `workers/`: calls are asyncio tasks, and a death is an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError

from workers.actor_handle import Handle, Ref
from workers.rollout.worker import RolloutWorker


class LocalRef:
    """Reference to the result of a call in this process: the part of an object reference that `ActorGroup` uses."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._result: Future[Any] = Future()
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._done)

    def future(self) -> Future[Any]:
        """Future of the result."""
        return self._result

    def fail(self, error: BaseException) -> None:
        """End the call with an error, unless it has ended."""
        if not self._result.done():
            self._result.set_exception(error)
        self.cancel()

    def cancel(self) -> None:
        """Cancel the call."""
        self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        if self._result.done() or task.cancelled():
            return
        if error := task.exception():
            self._result.set_exception(error)
        else:
            self._result.set_result(task.result())


class LocalActor(Handle[RolloutWorker]):
    """Handle of an actor whose calls run in this process.

    Args:
        engine: object with the methods of a `RolloutWorker`.
    """

    def __init__(self, engine: object) -> None:
        self._engine = engine
        self._calls: list[LocalRef] = []
        self._dead = False

    def __call__(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        ref = LocalRef(getattr(self._engine, method.__name__)(*args, **kwargs))
        if self._dead:
            ref.fail(RayActorError())
        self._calls = [call for call in self._calls if not call.future().done()] + [ref]
        return ref

    def cancel(self, ref: Ref[Any]) -> None:
        """Cancel a call that is under way."""
        assert isinstance(ref, LocalRef)
        ref.cancel()

    def kill(self) -> None:
        """Fail all calls, current and later ones, as the death of a process does."""
        self._dead = True
        for call in self._calls:
            call.fail(RayActorError())


@dataclass
class LocalClaim:
    """Claim of a worker that needs no resources."""

    rank: int

    async def ready(self, within_s: float) -> None:
        """Grant the claim at once."""
        await asyncio.sleep(0)

    def release(self) -> None:
        """Do nothing."""
