"""Sending end of a publish: the outbox of learner 0, and its place in the process group of the receivers."""

from __future__ import annotations

from typing import Any

import ray
import torch

from demopsd_dist.config import Transport
from workers.cluster.spans import Traced
from workers.weights.buckets import Segment
from workers.weights.collective import CollectiveOutbox
from workers.weights.process_group import SENDER, GroupMeeting, GroupMember, open_meeting
from workers.weights.transports import Outbox, PublishPlan, SharedMemoryOutbox, create_outbox


class Sender(Traced):
    """An actor that sends weights: a learner, of which rank 0 alone has an outbox."""

    rank: int
    _outbox: Outbox
    _device: torch.device  # of its weights

    def __init__(self) -> None:
        super().__init__()
        self._store: Any = None  # of a group that is being formed

    def plan(self) -> PublishPlan:
        """Describe the buckets of every publish."""
        raise NotImplementedError

    def open_outbox(self, transport: Transport) -> Segment | None:
        """Open the outbox of rank 0, before the first publish.

        Returns:
            The memory that the receivers map, if that is the transport; None on the other ranks.
        """
        if self.rank:
            return None
        if isinstance(old := getattr(self, "_outbox", None), CollectiveOutbox | SharedMemoryOutbox):
            old.close()
        self._outbox = create_outbox(transport, self.plan().sizes, self._device)
        return self._outbox.segment

    def open_group(self, name: str, size: int, within_s: float, on_gpus: bool) -> GroupMeeting:
        """Leave the last publishing group, and open a meeting for a new one, of `size` processes."""
        self._collective.close()
        meeting, self._store = open_meeting(name, self._address, size, within_s, on_gpus=on_gpus)
        return meeting

    def join_opened_group(self, meeting: GroupMeeting) -> None:
        """Join the group that this actor has opened, as its sender.

        Raises:
            BrokenGroupError: the others did not join in time.
        """
        store, self._store = self._store, None
        self._collective.join(GroupMember(meeting, SENDER, self._address, store))

    def finish_sending(self) -> None:
        """Wait until every receiver has all buckets of the publish.

        Raises:
            BrokenGroupError: the group is broken.
        """
        self._collective.finish()

    @property
    def _address(self) -> str:
        return ray.util.get_node_ip_address()

    @property
    def _collective(self) -> CollectiveOutbox:
        assert isinstance(self._outbox, CollectiveOutbox)
        return self._outbox
