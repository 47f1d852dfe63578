"""Composition of the driver's roles from groups of Ray actors: start, restart and stop them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, Transport
from demopsd_dist.methods import resolve_method
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.models.text_config import layers_with_a_state, text_config_of
from demopsd_dist.training.roles import Roles
from demopsd_dist.util.errors import LostStateError
from workers.actor_group import ActorGroup, gather_root_cause, no_actors
from workers.cluster.placement import core_bundles, processes_per_worker
from workers.cluster.ranks import Rank
from workers.cluster.resource_claim import ResourceClaim
from workers.cluster.spans import GroupProfiling, Traced
from workers.exported_student import ExportCheck, check_export
from workers.learner import worker as learner
from workers.learner.group import LearnerGroup
from workers.learner.worker import LearnerWorker
from workers.rollout.dispatch import Pool
from workers.rollout.group import RolloutGroup
from workers.rollout.pool import FixedPool, RolloutPool, Say
from workers.rollout.worker import RolloutWorker
from workers.teacher import worker as teacher
from workers.teacher.group import TeacherGroup
from workers.teacher.worker import TeacherWorker
from workers.weights.publisher import WeightPublisher


async def prepare_ranks(group: ActorGroup[Rank], within_s: float, what: str) -> None:
    """Run the part of every rank's start that waits for no other rank."""
    await group.each(lambda worker, _: worker(Rank.prepare), within_s=within_s, what=what)


async def start_ranks(group: ActorGroup[Rank], within_s: float, what: str) -> None:
    """Start all ranks of a group, both parts."""
    await prepare_ranks(group, within_s, what)
    await join_ranks(group, within_s, what)


async def join_ranks(group: ActorGroup[Rank], within_s: float, what: str) -> None:
    """Start all ranks of a group that are prepared: rank 0 gives an address, where they join the process group."""
    if not len(group):
        return
    addresses = await group.each(lambda worker, _: worker(Rank.address), within_s=within_s, what="an address")
    await group.each(lambda worker, _: worker(Rank.start, addresses[0]), within_s=within_s, what=what)


async def forward_counts(groups: Sequence[ActorGroup[Rank]], within_s: float) -> dict[str, int]:
    """Responses that went through each kind of forward of these actors since their start, added up."""
    total: Counter[str] = Counter()
    for group in groups:
        for counts in await group.each(
            lambda worker, _: worker(Rank.forward_counts), within_s=within_s, what="the number of its forwards"
        ):
            total += counts
    return dict(sorted(total.items()))


def say_prefix_cache(model_folder: Path, say: Say) -> None:
    """Say that engines have no prefix cache, if that is so for the model."""
    if states := layers_with_a_state(text_config_of(model_folder)):
        say(f"engines without a prefix cache: layers of the model carry a state ({', '.join(states)})")


class RolloutActors:
    """Rollout workers alone, with the weights of the model folder: all that an evaluation needs."""

    def __init__(self, config: Config, model_folder: Path, say: Say = print) -> None:
        config, _ = resolve_precision(config, model_folder)
        self._config, self._folder, self._say = config, model_folder, say
        self._pool = RolloutPool(config, model_folder.resolve(), random_weights=False, say=say)

    async def start(self) -> RolloutGroup:
        """Start the engines; returns when they serve."""
        say_prefix_cache(self._folder, self._say)
        self._pool.let_engines_start()
        await self._pool.start()
        return RolloutGroup(self._pool, self._config)

    @property
    def group(self) -> ActorGroup[RolloutWorker]:
        """The rollout workers that serve."""
        return self._pool.group

    def stop(self) -> None:
        """End all actors."""
        self._pool.stop()


class LearnersAndTeacher:
    """Learners and teacher, placed together: enough to train on rollouts that exist already. `start` returns when every
    engine is ready, `stop` ends them."""

    def __init__(self, config: Config, model_folder: Path, pool: Pool | None = None, say: Say = print) -> None:
        config, _ = resolve_precision(config, model_folder)
        self._config, self._folder, self._say = config, model_folder.resolve(), say
        self._method = resolve_method(config)
        self._core = ResourceClaim(core_bundles(config))
        self._learners: ActorGroup[LearnerWorker] = ActorGroup("learner", {}, LostStateError)
        self._teacher: ActorGroup[TeacherWorker] = ActorGroup("teacher", {}, LostStateError)
        self._rollouts: Pool = pool or FixedPool(no_actors("rollout"), config)
        self._publisher = WeightPublisher(self._learners, self._rollouts, self._teacher, config)

    async def start(self) -> Roles:
        """Start all engines, and choose the transport of the weights."""
        await self._start_actors()
        await self._publisher.start()
        return Roles(
            rollouts=RolloutGroup(self._rollouts, self._config),
            teacher=TeacherGroup(self._teacher, self._config),
            learners=LearnerGroup(self._learners, self._config, self._method, self._publisher.sleep_engines),
            weights=self._publisher,
            restart=self.restart,
            profiling=GroupProfiling(self._traced_groups, self._config.limits.call_s),
        )

    async def restart(self) -> None:
        """Restart learners and teacher after one of them was lost."""
        await self._start_core()
        await self._publisher.start()

    async def _start_actors(self) -> None:
        await self._first_start_of_core()

    async def _first_start_of_core(self) -> None:
        """Start learners and teacher; once more if one of them dies meanwhile, unless `limits.restarts` is 0. Engines
        that already start go on."""
        try:
            await self._start_core()
        except LostStateError as error:
            if not (error.died and self._config.limits.restarts):
                raise
            self._say(f"warning: lost: {error} Learners and teacher are started once more.")
            await self._start_core()

    async def _start_core(self) -> None:
        """Start learners and teacher. What is left of an earlier start is stopped first: a rank that lost its state
        cannot rejoin its process group."""
        self._kill_core()
        within_s = self._config.limits.start_s
        await self._core.ready(within_s)

        def arguments(rank: int) -> tuple[int, Config, Path]:
            return rank, self._config, self._folder

        self._teacher.add(self._core.spawn("teacher", TeacherWorker, arguments, teacher.environment(self._config)))
        self._learners.add(self._core.spawn("learner", LearnerWorker, arguments, learner.environment(self._config)))
        await gather_root_cause(
            prepare_ranks(self._learners, within_s, "the model"),
            prepare_ranks(self._teacher, within_s, "its libraries"),
        )
        self._let_engines_start()
        await gather_root_cause(
            join_ranks(self._learners, within_s, "the DeepSpeed process group"),
            join_ranks(self._teacher, within_s, "the teacher's models"),
        )

    def _let_engines_start(self) -> None:
        """Called when the learners have tried the model and accepted it."""

    @property
    def groups(self) -> dict[str, ActorGroup[Any]]:
        """Groups that have actors now, by role."""
        groups: tuple[ActorGroup[Any], ...] = (self._rollouts.group, self._teacher, self._learners)
        return {group.role: group for group in groups if len(group)}

    def devices(self, role: str) -> float:
        """Devices of all workers of a role: GPUs, or CPU threads."""
        settings = getattr(self._config, role)
        per_process = settings.gpus_per_worker or settings.threads
        return len(self.groups[role]) * per_process * processes_per_worker(self._config, role)

    async def peaks(self) -> dict[str, float]:
        """Peak rate of matrix products of each role, operations/s, of all its workers at the same time. Roles are
        measured one after the other, since they may share devices."""
        within_s, what = self._config.limits.start_s, "its peak"
        peaks: dict[str, float] = {}
        for group in (self._teacher, self._learners):
            if len(group):
                rates = await group.each(lambda worker, _: worker(Rank.peak_flops), within_s=within_s, what=what)
                peaks[group.role] = sum(rates)
        engines = self._rollouts.group
        if len(engines):
            rates = await engines.each(lambda worker, _: worker(RolloutWorker.peak_flops), within_s=within_s, what=what)
            peaks[engines.role] = sum(rates)
        return peaks

    def _traced_groups(self) -> Sequence[ActorGroup[Traced]]:
        return self._rollouts.group, self._teacher, self._learners

    @property
    def transport(self) -> str:
        """Transport of the weights in this run, for the log; of a process group with its library."""
        name = self._publisher.transport.value
        if self._publisher.transport is not Transport.collective:
            return name
        return f"{name} ({'NCCL' if self._config.learner.gpus_per_worker else 'gloo'})"

    async def check_export(self, folder: Path) -> ExportCheck:
        """Load an exported student in transformers and vLLM, and compare with the learners. The engine that loads it
        keeps its weights: only for the end of a run."""
        size = self._publisher.plan.vocabulary_size
        return await check_export(folder, self._learners, self._rollouts, self._config, size)

    async def forward_counts(self) -> dict[str, int]:
        """Responses that went through each kind of forward of teacher and learners since the start."""
        return await forward_counts((self._teacher, self._learners), self._config.limits.call_s)

    def stop(self) -> None:
        """End all actors and give their resources back."""
        self._kill_core()
        self._core.release()

    def _kill_core(self) -> None:
        self._learners.kill()
        self._teacher.kill()


class RayActors(LearnersAndTeacher):
    """All actors of a run: learners and teacher, and a pool of rollout workers.

    Rollout workers import their libraries while the learners load the model and try it; engines start once they have
    accepted it.
    """

    def __init__(
        self,
        config: Config,
        model_folder: Path,
        say: Say = print,
        rollout_class: type[RolloutWorker] = RolloutWorker,
    ) -> None:
        config, _ = resolve_precision(config, model_folder)
        self.pool = RolloutPool(
            config, model_folder.resolve(), random_weights=True, say=say, worker_class=rollout_class
        )
        super().__init__(config, model_folder, self.pool, say)
        self._publisher.say = say

    async def _start_actors(self) -> None:
        say_prefix_cache(self._folder, self._say)
        await gather_root_cause(self._first_start_of_core(), self.pool.start())

    def _let_engines_start(self) -> None:
        self.pool.let_engines_start()

    def stop(self) -> None:
        """End all actors and give their resources back."""
        self.pool.stop()
        super().stop()
