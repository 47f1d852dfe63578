"""Transports of buckets from learner 0 to the receivers: outboxes behind one small interface.

`ObjectStoreOutbox` works across nodes: one put whatever the number of receivers, each of which reads the copy on its
node. `SharedMemoryOutbox` is for receivers on the learner's own node: one segment of memory a run, with a slice for
each bucket, which all of them keep mapped. Its pages are touched once, when the roles start, and used again at every
publish. `CollectiveOutbox` (`collective.py`) sends through a process group.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import ray

from demopsd_dist.config import Transport
from demopsd_dist.util.errors import ConfigError, LostStateError
from workers.weights.buckets import (
    Bucket,
    BucketBytes,
    BucketRef,
    Bytes,
    SegmentSlice,
    SharedSegment,
    Specs,
    bucket_bytes,
)
from workers.weights.checkpoint_format import CheckpointViews
from workers.weights.collective import CollectiveOutbox


@dataclass(frozen=True)
class PublishPlan:
    """Contents of every publish of a run, and the node of the sender."""

    node: str
    buckets: tuple[Specs, ...]
    vocabulary_size: int
    checkpoint_views: CheckpointViews = field(default_factory=dict)  # for engines, which know the checkpoint's names

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(spec.name for specs in self.buckets for spec in specs)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each bucket."""
        return [bucket_bytes(specs) for specs in self.buckets]


class Outbox(Protocol):
    """The sender's end of a transport."""

    @property
    def segment(self) -> SharedSegment | None:
        """Shared memory that the receivers must map before they can read."""
        ...

    def buffer(self, index: int) -> BucketBytes:
        """Memory to pack a bucket into."""
        ...

    def send(self, bucket: Bucket) -> BucketRef:
        """Make a packed bucket available to the receivers."""
        ...


class ObjectStoreOutbox:
    """Sender through Ray's object store. All buckets are packed in one buffer, and put into the store from there."""

    segment = None

    def __init__(self, sizes: Sequence[int]) -> None:
        self._buffer = np.empty(max(sizes), np.uint8)

    def buffer(self, index: int) -> Bytes:
        """The buffer that all buckets share."""
        return self._buffer

    def send(self, bucket: Bucket) -> BucketRef:
        """Copy the bucket into the object store."""
        return BucketRef(bucket.header, ray.put(bucket.data))


class SharedMemoryOutbox:
    """Sender through shared memory: buckets are packed where the receivers read them. A slice is written again only at
    the next publish, which begins when all receivers have acknowledged the last.

    The memory is anonymous: it has no name in a file system, so it ends with the processes that have it mapped however
    they end, and the size of /dev/shm does not matter.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._starts = np.cumsum([0, *(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)]).tolist()
        descriptor = os.memfd_create("demopsd-weights", os.MFD_CLOEXEC)
        self.segment = SharedSegment(os.getpid(), descriptor, self._starts[-1], time.monotonic_ns())
        os.ftruncate(descriptor, self.segment.size)
        pages = mmap.mmap(descriptor, self.segment.size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._pages = np.frombuffer(pages, np.uint8)

    def close(self) -> None:
        """Give the memory back once no receiver has it mapped."""
        os.close(self.segment.descriptor)

    def buffer(self, index: int) -> Bytes:
        """The bucket's slice of the shared memory."""
        return self._pages[self._starts[index] : self._starts[index + 1]]

    def send(self, bucket: Bucket) -> BucketRef:
        """Refer to the bucket's slice; its bytes are there already."""
        return BucketRef(bucket.header, SegmentSlice(self.segment, self._starts[bucket.header.index]))


def create_outbox(transport: Transport, sizes: Sequence[int]) -> Outbox:
    """Outbox of a transport, for buckets of these sizes in bytes."""
    match transport:
        case Transport.shared_memory:
            return SharedMemoryOutbox(sizes)
        case Transport.collective:
            return CollectiveOutbox(sizes)
    return ObjectStoreOutbox(sizes)


def map_segment(segment: SharedSegment) -> Bytes:
    """Map a sender's shared memory, read-only.

    Raises:
        LostStateError: the sender has ended, is another user's process, or is on another node.
    """
    try:
        with open(f"/proc/{segment.pid}/fd/{segment.descriptor}", "rb") as file:
            pages = mmap.mmap(file.fileno(), segment.size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    except OSError as error:
        raise LostStateError(
            f"the shared memory of learner 0 (process {segment.pid}) cannot be mapped: {error}. If that process still "
            "runs, set weights.transport=object_store."
        ) from None
    return np.frombuffer(pages, np.uint8)


class MappedSegments:
    """Shared memory that a process has mapped, by segment."""

    def __init__(self) -> None:
        self._mapped: dict[SharedSegment, Bytes] = {}

    def add(self, segment: SharedSegment) -> None:
        """Map a segment, and unmap all others: a sender has one at a time.

        Raises:
            LostStateError: as for `map_segment`.
        """
        self._mapped = {segment: map_segment(segment)}

    def clear(self) -> None:
        """Unmap all segments."""
        self._mapped = {}

    def bucket(self, bucket_ref: BucketRef) -> Bucket:
        """Bucket at the reference's location; its segment is mapped if it is not yet."""
        location: SegmentSlice = bucket_ref.location
        if location.segment not in self._mapped:
            self.add(location.segment)
        end = location.start + bucket_bytes(bucket_ref.header.specs)
        return Bucket(bucket_ref.header, self._mapped[location.segment][location.start : end], location)


def choose_transport(setting: Transport, sender_node: str, receiver_nodes: dict[str, str]) -> Transport:
    """Choose the transport of a run.

    Args:
        setting: `weights.transport`.
        receiver_nodes: the node of each receiver, by its name ("rollout 0").

    Raises:
        ConfigError: the setting is shared memory and some receiver is on another node.
    """
    elsewhere = [name for name, node in receiver_nodes.items() if node != sender_node]
    if setting is Transport.shared_memory and elsewhere:
        raise ConfigError(
            f"weights.transport=shared_memory: not on the node of learner 0: {', '.join(elsewhere)}. Set it to auto or "
            "object_store."
        )
    if setting is Transport.auto:
        return Transport.object_store if elsewhere else Transport.shared_memory
    return setting
