"""The driver's end of a publishing group: who is in it, and forming it anew when that changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from demopsd_dist.config import Config, publishes_on_gpus
from demopsd_dist.util.errors import BrokenGroupError, WorkerError
from workers.actor_group import ActorGroup, gather_root_cause
from workers.actor_handle import Handle, Ref
from workers.cluster.placement import processes_per_worker
from workers.learner.worker import LearnerWorker
from workers.weights.process_group import PUBLISHING_GROUP, SENDER, GroupMeeting
from workers.weights.receiver import Receiver

ANSWER_S = 10.0  # for an answer after a limit of the members themselves


class WeightGroup:
    """The process group through which learner 0 sends. Its members are known by their actors' handles, so that the
    replacement of a worker is another member."""

    def __init__(self, learners: ActorGroup[LearnerWorker], config: Config) -> None:
        self._learners, self._config = learners, config
        self._members: dict[tuple[str, int], Handle[Any]] = {}  # receivers, by role and rank
        self._formed = 0

    @property
    def limit_s(self) -> float:
        """Limit of joining and of each broadcast: shorter than the time after which a rollout worker that waits for the
        others would itself count as hung."""
        return min(self._config.limits.call_s, self._config.limits.silence_s)

    def publishes_on_gpus(self, receivers: Sequence[ActorGroup[Receiver]]) -> bool:
        """Check that all members hold the weights on GPUs of their own, or none does; True if they do.

        Raises:
            ConfigError: neither is so.
        """
        roles = ["learner", *(group.role for group in receivers if len(group))]
        return publishes_on_gpus({role: getattr(self._config, role).gpus_per_worker for role in roles})

    def dissolve(self) -> None:
        """Forget the group, which is broken; the next one is formed anew."""
        self._members = {}

    async def form(self, receivers: Sequence[ActorGroup[Receiver]]) -> None:
        """Let learner 0 and these receivers join a new group, unless they are the members of the last one.

        Raises:
            BrokenGroupError: one of them could not join.
            LostStateError: learner 0 is gone.
        """
        members = {(group.role, rank): handle for group in receivers for rank, handle in group.handles.items()}
        if members == self._members:
            return
        self._members = {}
        on_gpus = self.publishes_on_gpus(receivers)
        first_ranks, size = self._ranks(members)
        self._formed += 1
        name = f"weights-{self._formed}"
        opened = self._learners.start_one(
            SENDER, lambda worker: worker(LearnerWorker.open_group, name, size, self.limit_s, on_gpus)
        )
        (meeting,) = await self._learners.collect([opened], within_s=self._config.limits.call_s, what=name)
        within_s = self.limit_s + ANSWER_S
        sender = self._learners.start_one(SENDER, lambda worker: worker(LearnerWorker.join_opened_group, meeting))
        joining = [
            group.start(partial(_join, meeting, {rank: first_ranks[group.role, rank] for rank in group.ranks}))
            for group in receivers
        ]
        try:
            await gather_root_cause(
                self._learners.collect([sender], within_s=within_s, what=name),
                *(
                    group.collect(calls, within_s=within_s, what=name)
                    for group, calls in zip(receivers, joining, strict=True)
                ),
            )
        except WorkerError as error:
            raise BrokenGroupError(f"the {PUBLISHING_GROUP} {name} could not be formed: {error}") from None
        self._members = members

    def _ranks(self, members: Mapping[tuple[str, int], Any]) -> tuple[dict[tuple[str, int], int], int]:
        """Rank of each receiver's first process, and the number of all processes with learner 0."""
        ranks: dict[tuple[str, int], int] = {}
        size = 1
        for role, rank in members:
            ranks[role, rank] = size
            size += processes_per_worker(self._config, role)
        return ranks, size


def _join(meeting: GroupMeeting, first_ranks: Mapping[int, int], worker: Handle[Receiver], rank: int) -> Ref[None]:
    return worker(Receiver.join_group, meeting, first_ranks[rank])


async def receiver_nodes(group: ActorGroup[Receiver], within_s: float) -> dict[str, str]:
    """Node of each actor, by the actor's name ("rollout 0")."""
    nodes = await group.each(lambda worker, _: worker(Receiver.node), within_s=within_s, what="its node")
    return {f"{group.role} {rank}": node for rank, node in zip(group.ranks, nodes, strict=True)}
