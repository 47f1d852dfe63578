"""Worker processes that serve one run after another: a run's actors are constructed anew in them.

A new process spends more time on its imports than a small engine on its start. Everything else is the trainer's own:
`KeptActors` is `RayActors` with other processes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from demopsd_dist.config import Config
from demopsd_dist.util.errors import LostStateError, LostWorkerError, WorkerError
from workers.actor_group import ActorGroup
from workers.actor_handle import Handle
from workers.actors import LearnersAndTeacher, RayActors
from workers.cluster.placement import Bundle
from workers.cluster.resource_claim import ResourceClaim
from workers.learner import worker as learner
from workers.rollout import worker as rollout
from workers.rollout.pool import RolloutPool, Say
from workers.teacher import worker as teacher

RENEW_S = 240.0
CPUS = 0.1


class KeptHandle(Handle[Any]):
    """Handle of an actor whose process outlives the run: `kill` only empties the worker."""

    def renew(self, worker_class: type, arguments: tuple[Any, ...]) -> None:
        """Construct a worker anew in the actor's process."""

        def construct(worker: Any) -> None:
            vars(worker).clear()
            gc.collect()
            worker.__init__(*arguments)

        ray.get(self.run(construct), timeout=RENEW_S)

    def kill(self) -> None:
        """Leave the process, for the next run."""


class KeptProcesses:
    """One process of each role, with the environment of `config`; those of later configs must be the same.

    Args:
        folder: any model folder; no worker loads it.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._claim = ResourceClaim([Bundle(role, 0, CPUS, 0) for role in ("rollout", "teacher", "learner")])
        self._config, self._folder = config, folder
        self._groups = [
            self._spawn("rollout", rollout.RolloutWorker, rollout.environment(config), LostWorkerError),
            self._spawn("teacher", teacher.TeacherWorker, teacher.environment(config), LostStateError),
            self._spawn("learner", learner.LearnerWorker, learner.environment(config), LostStateError),
        ]
        self.handles = {group.role: KeptHandle(group.handles[0]._actor) for group in self._groups}

    def _spawn(
        self, role: str, worker_class: type[Any], env: dict[str, str], lost_error: type[WorkerError]
    ) -> ActorGroup[Any]:
        return self._claim.spawn_group(
            role, worker_class, lambda rank: (rank, self._config, self._folder), env, lost_error
        )

    def end(self) -> None:
        """End the processes and give their resources back."""
        for group in self._groups:
            group.kill()
        self._claim.release()


class KeptClaim:
    """Resource claim whose actors are in kept processes."""

    def __init__(self, processes: KeptProcesses) -> None:
        self._processes = processes

    async def ready(self, within_s: float) -> None:
        """Return at once: the processes have their resources."""

    def spawn(
        self, role: str, worker_class: type, arguments: Callable[[int], tuple[Any, ...]], env: dict[str, str]
    ) -> dict[int, Handle[Any]]:
        """Construct the role's only worker anew."""
        handle = self._processes.handles[role]
        handle.renew(worker_class, arguments(0))
        return {0: handle}

    def release(self) -> None:
        """Keep the resources, for the next run."""


class KeptPool(RolloutPool):
    """Rollout pool of one worker in a kept process.

    Attributes:
        started: whether its engine was allowed to start.
    """

    def __init__(self, config: Config, folder: Path, processes: KeptProcesses, say: Say) -> None:
        super().__init__(config, folder, random_weights=True, say=say)
        self._processes = processes
        self.started = False

    def let_engines_start(self) -> None:
        """Let the engine start."""
        self.started = True
        super().let_engines_start()

    def _claim(self, rank: int) -> Any:
        return KeptClaim(self._processes)


class KeptActors(RayActors):
    """All actors of a run with one worker a role, in kept processes."""

    def __init__(self, config: Config, folder: Path, processes: KeptProcesses, say: Say = print) -> None:
        self.pool: KeptPool = KeptPool(config, folder.resolve(), processes, say)
        LearnersAndTeacher.__init__(self, config, folder, self.pool)
        self._say = say
        self._core.release()
        self._core: Any = KeptClaim(processes)
