"""How the bytes of a bucket get from the first learner to the receivers: two transports behind one small interface.

`ObjectStoreOutbox` works across nodes: one put whatever the number of receivers, each of which reads the copy on its node.
`SharedMemoryOutbox` is for receivers on the learner's own node: one segment of memory a run, with a place for each bucket,
which all of them keep mapped. Its pages are touched once, when the roles start, and used again at every publish.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import ray

from demopsd_dist.config import Transport
from demopsd_dist.util.errors import ConfigError, LostStateError, WeightSyncError
from workers.cluster.spans import Traced
from workers.weights.buckets import Ack, Bucket, BucketRef, Bytes, Specs, bytes_of, verify_bucket


@dataclass(frozen=True)
class PublishPlan:
    """What every publish of a run will bring, and from where."""

    node: str
    buckets: tuple[Specs, ...]
    vocabulary_size: int

    @property
    def names(self) -> frozenset[str]:
        return frozenset(spec.name for specs in self.buckets for spec in specs)

    @property
    def sizes(self) -> list[int]:
        return [bytes_of(specs) for specs in self.buckets]


@dataclass(frozen=True)
class SharedSegment:
    """Where a process of the same node finds the shared memory: in a descriptor of the process that owns it."""

    pid: int
    descriptor: int
    size: int


@dataclass(frozen=True)
class SegmentSlice:
    segment: SharedSegment
    start: int


class Outbox(Protocol):
    """The sender's end of a transport."""

    @property
    def segment(self) -> SharedSegment | None:
        """Shared memory that the receivers must map before they can read."""
        ...

    def room(self, index: int) -> Bytes:
        """Where the bytes of a bucket are to be written."""
        ...

    def send(self, bucket: Bucket) -> BucketRef:
        """Let the receivers have what was written there."""
        ...


class ObjectStoreOutbox:
    """Buckets are packed in one place that is used again, and put into Ray's object store from there."""

    segment = None

    def __init__(self, sizes: Sequence[int]) -> None:
        self._room = np.empty(max(sizes), np.uint8)

    def room(self, index: int) -> Bytes:
        return self._room

    def send(self, bucket: Bucket) -> BucketRef:
        return BucketRef(bucket.label, ray.put(bucket.data))


class SharedMemoryOutbox:
    """Buckets are packed where the receivers read them. A place is written again only at the next publish, which begins
    when all receivers have confirmed the last.

    The memory is anonymous: it has no name in a file system, so it goes with the processes that have it mapped however
    they end, and the size of /dev/shm does not matter.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._starts = np.cumsum([0, *(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)]).tolist()
        descriptor = os.memfd_create("demopsd-weights", os.MFD_CLOEXEC)
        self.segment = SharedSegment(os.getpid(), descriptor, self._starts[-1])
        os.ftruncate(descriptor, self.segment.size)
        pages = mmap.mmap(descriptor, self.segment.size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._pages = np.frombuffer(pages, np.uint8)

    def room(self, index: int) -> Bytes:
        return self._pages[self._starts[index] : self._starts[index + 1]]

    def send(self, bucket: Bucket) -> BucketRef:
        return BucketRef(bucket.label, SegmentSlice(self.segment, self._starts[bucket.label.index]))


def outbox(transport: Transport, sizes: Sequence[int]) -> Outbox:
    return SharedMemoryOutbox(sizes) if transport is Transport.shared_memory else ObjectStoreOutbox(sizes)


def mapped(segment: SharedSegment) -> Bytes:
    """A receiver's view of the shared memory, for reading only.

    Raises:
        LostStateError: the sender is gone, is another user's process, or not of this node.
    """
    try:
        with open(f"/proc/{segment.pid}/fd/{segment.descriptor}", "rb") as file:
            pages = mmap.mmap(file.fileno(), segment.size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    except OSError as error:
        raise LostStateError(
            f"the shared memory of learner 0 (process {segment.pid}) cannot be mapped: {error}. If that process lives, "
            "set weights.transport=object_store."
        ) from None
    return np.frombuffer(pages, np.uint8)


class MappedSegments:
    """A process's views of shared memory, by segment."""

    def __init__(self) -> None:
        self._mapped: dict[SharedSegment, Bytes] = {}

    def add(self, segment: SharedSegment) -> None:
        """Map it, and let go of those whose owner has ended.

        Raises:
            LostStateError: as `mapped`.
        """
        self._mapped = {old: pages for old, pages in self._mapped.items() if os.path.exists(f"/proc/{old.pid}")}
        self._mapped[segment] = mapped(segment)

    def bucket(self, bucket_ref: BucketRef) -> Bucket:
        """What lies at the bucket_ref's place; its segment is mapped if it has not been."""
        place: SegmentSlice = bucket_ref.place
        if place.segment not in self._mapped:
            self.add(place.segment)
        end = place.start + bytes_of(bucket_ref.label.specs)
        return Bucket(bucket_ref.label, self._mapped[place.segment][place.start : end], place)


def chosen(wanted: Transport, sender_node: str, receivers: dict[str, str]) -> Transport:
    """The transport of a run.

    Args:
        receivers: the node of each receiver, by its name ("rollout 0").

    Raises:
        ConfigError: shared memory was asked for and some receiver is on another node.
    """
    elsewhere = [name for name, node in receivers.items() if node != sender_node]
    if wanted is Transport.shared_memory and elsewhere:
        raise ConfigError(
            f"weights.transport=shared_memory: not on the node of learner 0: {', '.join(elsewhere)}. Set it to auto or "
            "object_store."
        )
    if wanted is Transport.auto:
        return Transport.object_store if elsewhere else Transport.shared_memory
    return wanted


class Receiver(Traced):
    """What rollout workers and the teacher have in common: where they are, and how buckets reach them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name  # "rollout 0", for messages
        self._names: frozenset[str] | None = None  # what a publish must bring; None where that is not known yet
        self._pages = MappedSegments()

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def attach(self, plan: PublishPlan, segment: SharedSegment | None) -> None:
        """Before the first publish: what is to be expected, and the shared memory where that is the transport.

        Raises:
            WeightSyncError: the learners' model has other tensors.
            LostStateError: the shared memory cannot be mapped.
        """
        if self._names is not None:
            refuse_other_names(self._name, set(self._names), set(plan.names), "the learners' model")
        self.plan = plan
        self._names = plan.names
        if segment is not None:
            self._pages.add(segment)

    def arriving(self, version: int, bucket_refs: Sequence[ray.ObjectRef]) -> Iterator[Bucket]:
        """The buckets of a publish, each as soon as it is there and found whole. While the caller loads one, the next
        is waited for and verified, and those after it are packed.

        Raises:
            WeightSyncError: they are of another version, damaged, or not all there.
        """
        self.waited_s = self.verified_s = self.began_s = 0.0
        sent: set[str] = set()
        fetcher = ThreadPoolExecutor(1)
        try:
            for fetched in [fetcher.submit(self._fetched, version, i, ref) for i, ref in enumerate(bucket_refs)]:
                bucket = fetched.result()
                self.began_s = self.began_s or time.perf_counter()
                sent |= {spec.name for spec in bucket.label.specs}
                yield bucket
        finally:
            fetcher.shutdown(wait=False, cancel_futures=True)
        if self._names is not None:
            refuse_other_names(self._name, set(self._names), sent, f"weights version {version}")

    def ack(self, version: int) -> Ack:
        """For the publish that has just been loaded."""
        return Ack(version, None, self.waited_s, self.verified_s, time.perf_counter() - self.began_s)

    def _fetched(self, version: int, index: int, ref: ray.ObjectRef) -> Bucket:
        started = time.perf_counter()
        bucket_ref: BucketRef = ray.get(ref)
        label = bucket_ref.label
        if (label.version, label.index) != (version, index):
            raise WeightSyncError(
                f"{self._name} waits for bucket {index} of weights version {version} and got bucket {label.index} of "
                f"version {label.version}."
            )
        stored = isinstance(bucket_ref.place, ray.ObjectRef)
        bucket = Bucket(label, ray.get(bucket_ref.place)) if stored else self._pages.bucket(bucket_ref)
        arrived = time.perf_counter()
        verify_bucket(bucket, self._name)
        self.waited_s += arrived - started
        self.verified_s += time.perf_counter() - arrived
        return bucket


def refuse_other_names(receiver: str, expected: set[str], sent: set[str], of_what: str) -> None:
    """
    Raises:
        WeightSyncError: some tensor is missing, or is one too many.
    """
    for names, how in ((expected - sent, "was not sent"), (sent - expected, "does not know")):
        if names:
            raise WeightSyncError(f"{receiver} {how} {len(names)} of the tensors of {of_what}, first {min(names)}.")
