"""Handles of actors whose calls are typed: mypy finds a misspelt remote method and a wrong argument.

`worker(LearnerWorker.step, shard, ...)` calls `step` in the actor and returns a reference to its result. The method is
given as an attribute of its class, so that mypy knows its parameters and result, and is looked up in the actor by name.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import ray

W_co = TypeVar("W_co", covariant=True)  # the worker's class
P = ParamSpec("P")
R = TypeVar("R")


class Ref(Protocol[R]):
    """A reference to the result of a remote call: the part of Ray's `ObjectRef` that this project uses."""

    def future(self) -> Future[R]:
        """Future of the result, for another thread (`concurrent.futures`)."""
        ...


class Handle(Generic[W_co]):
    """Handle of a Ray actor whose process holds an object of the class `W_co`, such as a `RolloutWorker`."""

    def __init__(self, actor: ray.actor.ActorHandle) -> None:
        self._actor = actor

    @overload
    def __call__(
        self, method: Callable[Concatenate[W_co, P], Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Ref[R]: ...

    @overload
    def __call__(self, method: Callable[Concatenate[W_co, P], R], /, *args: P.args, **kwargs: P.kwargs) -> Ref[R]: ...

    def __call__(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Start a call of the worker's method."""
        return getattr(self._actor, method.__name__).remote(*args, **kwargs)

    def run(self, function: Callable[Concatenate[W_co, P], R], /, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Start a call of a function in the actor's process, with the worker as its first argument."""
        return self._actor.__ray_call__.remote(function, *args, **kwargs)

    def cancel(self, ref: Ref[Any]) -> None:
        """Cancel a call that is under way."""
        ray.cancel(ref)

    def kill(self) -> None:
        """End the actor's process."""
        ray.kill(self._actor)
