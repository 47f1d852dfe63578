"""A worker's death is reported with what its process left in its error output."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import ray

from demopsd_dist.util.errors import LostWorkerError
from workers.actor_group import ActorGroup


class Mortal:
    """An actor that ends its own process."""

    def crash(self) -> None:
        ctypes.string_at(0)

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("death", "said"),
    [
        (lambda actor, _: actor.crash.remote(), r"It crashed: SIGSEGV; .*Python frames string_at \(.*< crash \("),
        (lambda actor, _: actor.killed.remote(), r"tells of no crash: it was killed from outside"),
    ],
    ids=["crash", "kill"],
)
def test_the_message_says_how(death: Callable[[Any, int], Any], said: str) -> None:
    actor: Any = ray.remote(Mortal).options(num_cpus=0).remote()
    group: ActorGroup[Any] = ActorGroup("learner", {0: actor}, LostWorkerError)
    with pytest.raises(LostWorkerError, match=f"learner 0 died during this call: a test.*{said}"):
        asyncio.run(group.each(death, within_s=60, what="a test"))
