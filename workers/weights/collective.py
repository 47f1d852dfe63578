"""Transport of buckets by a process group (`process_group.py`): one broadcast a bucket, into the memory of every
receiving process.

Before a bucket its version, index and size are broadcast, so that a receiver that waits for another one notices: gloo
ends a process that receives more bytes than it waits for. The sender packs a bucket while the last one travels. A
receiver has at most `AHEAD` buckets that it has not loaded yet, so that neither side needs memory for the whole model.
The headers, with the digests, go through Ray as with every other transport.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from demopsd_dist.util.errors import BrokenGroupError, WeightSyncError
from workers.weights.buckets import (
    Bucket,
    BucketBytes,
    BucketHeader,
    BucketRef,
    InBroadcast,
    broadcast_bytes,
    bucket_bytes,
)
from workers.weights.process_group import GroupMember

BUFFERS = 2
AHEAD = 2


class SupersededError(BrokenGroupError):
    """The learners have other weights by now than those asked for; they are published next."""


class CollectiveOutbox:
    """Sender through a process group. Two buffers take turns: one is packed while the other is sent.

    Without receivers there is no group, and buckets are packed and sent to nobody.
    """

    segment = None

    def __init__(self, sizes: Sequence[int]) -> None:
        self._size = max(broadcast_bytes(size) for size in sizes)
        self._member: GroupMember | None = None
        self._buffers: list[torch.Tensor] = []
        self._transfers: dict[int, int] = {}  # number of the transfer out of each buffer, while under way
        self._announcements: dict[int, int] = {}  # and of the one before it

    def join(self, member: GroupMember) -> None:
        """Send through this group from now on; leave the last one."""
        self.close()
        self._member = member

    def close(self) -> None:
        """Leave the group."""
        self._transfers.clear()
        self._announcements.clear()
        if self._member is not None:
            self._member.close()
            self._member = None

    def buffer(self, index: int) -> BucketBytes:
        """Memory for a bucket: of the GPU if the group is one of GPUs. Waits until its last bucket has been sent.

        Raises:
            BrokenGroupError: the group is broken.
        """
        device = torch.device("cpu") if self._member is None else self._member.device
        if not self._buffers or self._buffers[0].device != device:
            self._buffers = [torch.empty(self._size, dtype=torch.uint8, device=device) for _ in range(BUFFERS)]
        self._wait(index % BUFFERS)
        if self._member is not None:
            self._member.refuse_closed()
        buffer = self._buffers[index % BUFFERS]
        return buffer.numpy() if device.type == "cpu" else buffer

    def send(self, bucket: Bucket) -> BucketRef:
        """Start the broadcast of a packed bucket.

        Raises:
            BrokenGroupError: the group is broken.
        """
        turn = bucket.header.index % BUFFERS
        if self._member is not None:
            announced = torch.tensor(_announcement(bucket.header), device=self._member.device)
            self._announcements[turn] = self._member.start_broadcast(announced)
            sent = self._buffers[turn][: broadcast_bytes(bucket_bytes(bucket.header.specs))]
            self._transfers[turn] = self._member.start_broadcast(sent)
        return BucketRef(bucket.header, InBroadcast())

    def finish(self) -> None:
        """Wait until every receiver has all buckets.

        Raises:
            BrokenGroupError: the group is broken.
        """
        for turn in range(BUFFERS):
            self._wait(turn)

    def _wait(self, turn: int) -> None:
        for transfers in (self._announcements, self._transfers):
            transfer = transfers.pop(turn, None)
            if transfer is not None and self._member is not None:
                self._member.wait(transfer)


def receive_bucket(member: GroupMember | None, header: BucketHeader) -> Bucket:
    """Receive the next broadcast, which is the bucket of this header.

    Raises:
        WeightSyncError: it is another bucket.
        BrokenGroupError: the group is broken, or this process is in none.
    """
    if member is None:
        raise BrokenGroupError(f"bucket {header.index} comes by a broadcast, and this process is in no process group.")
    announced = torch.empty(3, dtype=torch.int64, device=member.device)
    member.wait(member.start_broadcast(announced))
    if (came := announced.tolist()) != _announcement(header):
        member.close()
        raise WeightSyncError(
            f"bucket {header.index} of weights version {header.version} was lost: in its place came bucket "
            f"{came[1]} of version {came[0]}, {came[2]} bytes."
        )
    size = bucket_bytes(header.specs)
    if member.device.type != "cpu":
        on_gpu = torch.empty(broadcast_bytes(size), dtype=torch.uint8, device=member.device)
        member.wait(member.start_broadcast(on_gpu))
        return Bucket(header, on_gpu)
    data = member.memory.take(broadcast_bytes(size))
    member.wait(member.start_broadcast(torch.from_numpy(data)))
    return Bucket(header, data[:size])


def _announcement(header: BucketHeader) -> list[int]:
    return [header.version, header.index, bucket_bytes(header.specs)]
