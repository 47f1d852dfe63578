"""Buckets of weights, each with a digest: the unit in which weights travel from the learners to their receivers.

A bucket is one flat array of bytes and the list of tensors in it. Its bytes go by a transport (`transports.py`), its
`BucketRef` goes through Ray. Each receiver checks the digest of the bytes that arrived before it loads them. The digest
(XXH3, 128 bits) detects accidents: a wrong offset, a page overwritten too early, a broken transfer. It is no protection
from an attacker.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from demopsd_dist.util.errors import WeightSyncError
from workers.weights.device_digest import word_sums

ALIGNMENT_BYTES = 64
CHUNK_BYTES = 1 << 20  # copied bytes are digested while they are still in the processor's cache
Bytes = NDArray[np.uint8]
BucketBytes = Bytes | torch.Tensor  # a tensor of bytes where they lie on a GPU


@dataclass(frozen=True)
class SharedSegment:
    """Shared memory, by a file descriptor of the process that owns it; processes of the same node can map it.

    Attributes:
        number: of this memory; a process uses the number of a closed descriptor again.
    """

    pid: int
    descriptor: int
    size: int
    number: int = 0


@dataclass(frozen=True)
class DeviceSegment:
    """Memory of a GPU, which other processes on the same GPU can map (CUDA IPC).

    Attributes:
        gpu: unique id of the GPU.
        number: of this memory.
        handle: torch's function that maps the memory as a tensor of bytes, and its arguments.
    """

    gpu: str
    number: int
    handle: tuple[Callable[..., torch.Tensor], tuple[Any, ...]] = field(compare=False, repr=False)


Segment = SharedSegment | DeviceSegment


@dataclass(frozen=True)
class SegmentSlice:
    """Position of a bucket in a segment of memory."""

    segment: Segment
    start: int


@dataclass(frozen=True)
class InBroadcast:
    """Location of a bucket whose bytes come by a broadcast (`collective.py`)."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of a tensor in a bucket, and its position there."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # torch's name, "float32"
    start: int  # byte offset in the bucket
    size: int  # bytes


Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class BucketHeader:
    """Contents of a bucket. `digest` covers the names, shapes and bytes of its tensors."""

    version: int
    index: int
    specs: Specs
    digest: str


@dataclass(frozen=True)
class Bucket:
    """A header and the bytes of its tensors."""

    header: BucketHeader
    data: BucketBytes
    location: SegmentSlice | InBroadcast | None = None  # in a segment, or still to come; None if it came another way


@dataclass(frozen=True)
class BucketRef:
    """A bucket that was sent: its header, its location, and the seconds that packing took."""

    header: BucketHeader
    location: Any  # Ray's object reference, a `SegmentSlice`, or `InBroadcast`
    packed_s: float = 0.0


@dataclass(frozen=True)
class Ack:
    """Acknowledgement: a receiver has loaded all weights of a version. `canary_logp_T` are its log-probabilities of the
    canary prompt (`canary.py`) with these weights; None from a teacher."""

    version: int
    canary_logp_T: NDArray[np.float32] | None
    waited_s: float = 0.0  # until buckets were packed and had arrived
    verified_s: float = 0.0  # with several buckets it overlaps the loading
    loaded_s: float = 0.0  # from the arrival of the first bucket to the last tensor loaded, without the canary


def layout(tensors: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> Specs:
    """Positions of named tensors in a bucket: one after the other, each aligned for any type."""
    specs: list[TensorSpec] = []
    end = 0
    for name, shape, dtype in tensors:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        size = math.prod(shape) * dtype.itemsize
        specs.append(TensorSpec(name, tuple(shape), str(dtype).removeprefix("torch."), start, size))
        end = start + size
    return tuple(specs)


def bucket_bytes(specs: Specs) -> int:
    """Size of a bucket, bytes."""
    return specs[-1].start + specs[-1].size


def broadcast_bytes(size: int) -> int:
    """Bytes that a broadcast carries for a bucket of this size: whole words, which a GPU can digest."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pack_bucket(
    version: int, index: int, tensors: Iterable[tuple[str, torch.Tensor]], buffer: BucketBytes | None = None
) -> Bucket:
    """Copy named tensors, from any device, into one bucket: into `buffer` if one is given."""
    tensors = list(tensors)
    specs = layout((name, tensor.shape, tensor.dtype) for name, tensor in tensors)
    if isinstance(buffer, torch.Tensor):
        return _pack_on_device(version, index, specs, tensors, buffer)
    data = np.empty(bucket_bytes(specs), np.uint8) if buffer is None else buffer[: bucket_bytes(specs)]
    hasher = _hasher(specs)
    for spec, (_, tensor) in zip(specs, tensors, strict=True):
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        place = data[spec.start : spec.start + spec.size]
        if flat.is_cuda:  # in one piece, which is fast into pinned memory
            torch.from_numpy(place).copy_(flat)
        for start in range(0, spec.size, CHUNK_BYTES):
            part = place[start : start + CHUNK_BYTES]
            if not flat.is_cuda:
                part[:] = flat[start : start + CHUNK_BYTES].numpy()
            hasher.update(part.data)
    return Bucket(BucketHeader(version, index, specs, hasher.hexdigest()), data)


def _pack_on_device(
    version: int, index: int, specs: Specs, tensors: Sequence[tuple[str, torch.Tensor]], buffer: torch.Tensor
) -> Bucket:
    data = buffer[: broadcast_bytes(bucket_bytes(specs))]
    for spec, (_, tensor) in zip(specs, tensors, strict=True):
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        data[spec.start : spec.start + spec.size].copy_(flat)
    return Bucket(BucketHeader(version, index, specs, digest_of(specs, data)), data)


def digest_of(specs: Specs, data: BucketBytes) -> str:
    """Digest of the tensors' specs and bytes; padding between tensors does not count, except on a GPU, which digests
    whole buffers (`device_digest.py`)."""
    if isinstance(data, torch.Tensor):
        sums = ",".join(map(str, word_sums(data)))
        return xxhash.xxh3_128(f"{specs!r} {sums}".encode()).hexdigest()
    hasher = _hasher(specs)
    for spec in specs:
        hasher.update(data[spec.start : spec.start + spec.size].data)
    return hasher.hexdigest()


def verify_bucket(bucket: Bucket, receiver: str) -> None:
    """Check the digest of a bucket that arrived.

    Raises:
        WeightSyncError: it differs from the digest that was sent; names receiver, bucket and tensors.
    """
    header = bucket.header
    digest = digest_of(header.specs, bucket.data)
    if digest != header.digest:
        raise WeightSyncError(
            f"{receiver} got bucket {header.index} of weights version {header.version} damaged: digest {digest}, sent "
            f"{header.digest}. It holds {header.specs[0].name} to {header.specs[-1].name}."
        )


def _hasher(specs: Specs) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(repr(specs).encode())


def unpack_bucket(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """Named tensors of a bucket, in order. They are views of its bytes: read them, do not keep them."""
    flat = bucket.data if isinstance(bucket.data, torch.Tensor) else _as_tensor(bucket.data)
    for spec in bucket.header.specs:
        piece = flat[spec.start : spec.start + spec.size]
        yield spec.name, piece.view(getattr(torch, spec.dtype)).reshape(spec.shape)


def _as_tensor(data: Bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=torch.uint8)
