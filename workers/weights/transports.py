"""Transports of buckets from learner 0 to the receivers: outboxes behind one small interface.

`ObjectStoreOutbox` works across nodes: one put whatever the number of receivers, each of which reads the copy on its
node. `SharedMemoryOutbox` is for receivers on the learner's own node: one segment of memory a run, with a slice for
each bucket, which all of them keep mapped. Its pages are touched once, when the roles start, and used again at every
publish. `DeviceOutbox` is the same in the memory of a GPU that all roles share. `CollectiveOutbox` (`collective.py`)
sends through a process group.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import ray
import torch
from torch.multiprocessing import reductions

from demopsd_dist.config import Transport
from demopsd_dist.util.errors import ConfigError, LostStateError
from workers.weights.buckets import (
    Bucket,
    BucketBytes,
    BucketRef,
    Bytes,
    DeviceSegment,
    Segment,
    SegmentSlice,
    SharedSegment,
    Specs,
    broadcast_bytes,
    bucket_bytes,
)
from workers.weights.checkpoint_format import CheckpointViews
from workers.weights.collective import CollectiveOutbox

CUDA_HOST_REGISTER_READ_ONLY = 0x08


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
    def segment(self) -> Segment | None:
        """Memory that the receivers must map before they can read."""
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
        pin(self._buffer)

    def buffer(self, index: int) -> Bytes:
        """The buffer that all buckets share."""
        return self._buffer

    def send(self, bucket: Bucket) -> BucketRef:
        """Copy the bucket into the object store."""
        return BucketRef(bucket.header, ray.put(bucket.data))


Memory = TypeVar("Memory", Bytes, torch.Tensor)


class SegmentOutbox(Generic[Memory]):
    """Sender through memory that the receivers keep mapped: a bucket is packed in its slice, where they read it. The
    slice is written again only at the next publish, which begins when all receivers have acknowledged the last.

    Args:
        segment: the memory, as receivers map it.
        memory: the same as bytes.
        starts: first byte of each bucket's slice, and the end of the last.
    """

    def __init__(self, segment: Segment, memory: Memory, starts: Sequence[int]) -> None:
        self.segment, self._starts = segment, starts
        self._memory: Memory = memory

    def buffer(self, index: int) -> Memory:
        """The bucket's slice of the memory."""
        return self._memory[self._starts[index] : self._starts[index + 1]]

    def send(self, bucket: Bucket) -> BucketRef:
        """Refer to the bucket's slice; its bytes are there already."""
        return BucketRef(bucket.header, SegmentSlice(self.segment, self._starts[bucket.header.index]))


class SharedMemoryOutbox(SegmentOutbox[Bytes]):
    """Sender through the shared memory of a node.

    The memory is anonymous: it has no name in a file system, so it ends with the processes that have it mapped however
    they end, and the size of /dev/shm does not matter.
    """

    segment: SharedSegment

    def __init__(self, sizes: Sequence[int]) -> None:
        starts = np.cumsum([0, *(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)]).tolist()
        descriptor = os.memfd_create("demopsd-weights", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, starts[-1])
        mapped = mmap.mmap(descriptor, starts[-1], flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        pages = np.frombuffer(mapped, np.uint8)
        pin(pages)
        super().__init__(SharedSegment(os.getpid(), descriptor, starts[-1], time.monotonic_ns()), pages, starts)

    def close(self) -> None:
        """Give the memory back once no receiver has it mapped."""
        os.close(self.segment.descriptor)


class DeviceOutbox(SegmentOutbox[torch.Tensor]):
    """Sender through memory of a GPU that learner 0 shares with all receivers.

    A bucket's digest is computed on the GPU, after its bytes were written, and read back before the bucket is sent: the
    bytes are there when a receiver learns of them.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        starts = np.cumsum([0, *map(broadcast_bytes, sizes)]).tolist()
        memory = torch.empty(starts[-1], dtype=torch.uint8, device=device)
        handle = reductions.reduce_tensor(memory)
        super().__init__(DeviceSegment(gpu_id(device), time.monotonic_ns(), handle), memory, starts)


def create_outbox(transport: Transport, sizes: Sequence[int], device: torch.device) -> Outbox:
    """Outbox of a transport.

    Args:
        sizes: bytes of each bucket.
        device: of the sender's weights.
    """
    match transport:
        case Transport.ipc:
            return DeviceOutbox(sizes, device)
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
    mapped = np.frombuffer(pages, np.uint8)
    pin(mapped)
    return mapped


def map_device_segment(segment: DeviceSegment) -> torch.Tensor:
    """Map a sender's memory of a GPU, as a tensor of bytes.

    Raises:
        ConfigError: this process uses another GPU, or none.
        LostStateError: the sender has ended.
    """
    own = gpu_id(torch.device("cuda")) if torch.cuda.is_available() else "none"
    if own != segment.gpu:
        raise ConfigError(
            f"weights.transport=ipc: learner 0 is on GPU {segment.gpu}, and {os.uname().nodename} process "
            f"{os.getpid()}, which receives its weights, on {own}. Let all roles share one GPU, or set "
            "weights.transport=auto."
        )
    rebuild, arguments = segment.handle
    try:
        return rebuild(*arguments)
    except RuntimeError as error:
        raise LostStateError(f"the GPU memory of learner 0 cannot be mapped: {error}") from None


def gpu_id(device: torch.device) -> str:
    """Unique id of a GPU."""
    return str(torch.cuda.get_device_properties(device).uuid)


def pin(pages: Bytes) -> None:
    """Register memory with CUDA, where this process uses a GPU: copies to and from pinned memory are several times as
    fast. Without a GPU nothing is done; where CUDA refuses, copies stay slow, and the log of the worker says so."""
    if not torch.cuda.is_available():
        return
    read_only = 0 if pages.flags.writeable else CUDA_HOST_REGISTER_READ_ONLY
    cuda, address = torch.cuda.cudart(), pages.ctypes.data
    error = int(cuda.cudaHostRegister(address, pages.nbytes, read_only))
    if error:
        print(f"{pages.nbytes >> 20} MiB for published weights could not be pinned: CUDA error {error}", flush=True)
        with suppress(RuntimeError):
            torch.ones(1, device="cuda")  # raises the error, which the next kernel would raise otherwise
    else:
        weakref.finalize(pages, cuda.cudaHostUnregister, address).atexit = False


class MappedSegments:
    """Memory that a process has mapped, by segment."""

    def __init__(self) -> None:
        self._mapped: dict[Segment, BucketBytes] = {}

    def add(self, segment: Segment) -> None:
        """Map a segment, and unmap all others: a sender has one at a time.

        Raises:
            LostStateError: as for both.
            ConfigError: as for `map_device_segment`.
        """
        if isinstance(segment, SharedSegment):
            self._mapped = {segment: map_segment(segment)}
        else:
            self._mapped = {segment: map_device_segment(segment)}

    def clear(self) -> None:
        """Unmap all segments."""
        self._mapped = {}

    def bucket(self, bucket_ref: BucketRef) -> Bucket:
        """Bucket at the reference's location; its segment is mapped if it is not yet."""
        location: SegmentSlice = bucket_ref.location
        if location.segment not in self._mapped:
            self.add(location.segment)
        size, data = bucket_bytes(bucket_ref.header.specs), self._mapped[location.segment]
        size = broadcast_bytes(size) if isinstance(data, torch.Tensor) else size
        return Bucket(bucket_ref.header, data[location.start : location.start + size], location)

    def wait_until_read(self) -> None:
        """Wait until a GPU has read all that it was asked to read from these segments."""
        if any(isinstance(data, torch.Tensor) and data.is_cuda for data in self._mapped.values()):
            torch.cuda.synchronize()


def choose_transport(setting: Transport, sender_node: str, receiver_nodes: dict[str, str]) -> Transport:
    """Choose the transport of a run.

    Args:
        setting: `weights.transport`.
        receiver_nodes: the node of each receiver, by its name ("rollout 0").

    Raises:
        ConfigError: the setting is memory of a node, and some receiver is on another one.
    """
    elsewhere = [name for name, node in receiver_nodes.items() if node != sender_node]
    if setting in (Transport.shared_memory, Transport.ipc) and elsewhere:
        raise ConfigError(
            f"weights.transport={setting.value}: not on the node of learner 0: {', '.join(elsewhere)}. Set it to auto "
            "or object_store."
        )
    if setting is Transport.auto:
        return Transport.object_store if elsewhere else Transport.shared_memory
    return setting
