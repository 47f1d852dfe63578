"""Weights on the way from the learners to everyone who samples or scores: packed buckets, each with a digest.

A bucket is one flat array of bytes and the list of tensors in it. Its bytes go by a transport (`transports.py`); what
the receivers are told of it, its bucket_ref, goes through Ray. Each receiver checks the digest of what it got before it
loads anything. The digest (XXH3, 128 bits) is there for accidents: a wrong offset, a page overwritten too early, a
broken transfer. It is no protection from somebody who means harm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from demopsd_dist.util.errors import WeightSyncError

ALIGNMENT_BYTES = 64
CHUNK_BYTES = 1 << 20  # what is copied is digested while it is still in the processor's cache
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: str  # torch's name, "float32"
    start: int  # byte offset in the bucket
    size: int  # bytes


Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class BucketHeader:
    """What a bucket holds. `digest` is of the names, shapes and bytes of its tensors."""

    version: int
    index: int
    specs: Specs
    digest: str


@dataclass(frozen=True)
class Bucket:
    label: BucketHeader
    data: Bytes
    place: Any = None  # in shared memory, where it lies there


@dataclass(frozen=True)
class BucketRef:
    """A bucket that has been sent: where it lies, and what it took to pack it."""

    label: BucketHeader
    place: Any  # the transport's: an object reference, or a place in shared memory
    packed_s: float = 0.0


@dataclass(frozen=True)
class Ack:
    """A receiver has loaded all of a version. `probe_logp_T` is what it now says of the probe; None from a teacher."""

    version: int
    probe_logp_T: NDArray[np.float32] | None
    waited_s: float = 0.0  # until buckets were packed and had arrived
    verified_s: float = 0.0  # beside the loading, where there are several buckets
    loaded_s: float = 0.0  # what the whole took beyond waiting for the first bucket, without the probe


def layout(tensors: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> Specs:
    """Where named tensors lie in a bucket: one after the other, each where any type may begin."""
    specs: list[TensorSpec] = []
    end = 0
    for name, shape, dtype in tensors:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        size = math.prod(shape) * dtype.itemsize
        specs.append(TensorSpec(name, tuple(shape), str(dtype).removeprefix("torch."), start, size))
        end = start + size
    return tuple(specs)


def bytes_of(specs: Specs) -> int:
    return specs[-1].start + specs[-1].size


def pack_bucket(
    version: int, index: int, tensors: Iterable[tuple[str, torch.Tensor]], room: Bytes | None = None
) -> Bucket:
    """Copy named tensors, from any device, into one bucket: into `room` where that is given."""
    tensors = list(tensors)
    specs = layout((name, tensor.shape, tensor.dtype) for name, tensor in tensors)
    data = np.empty(bytes_of(specs), np.uint8) if room is None else room[: bytes_of(specs)]
    hasher = _hasher(specs)
    for spec, (_, tensor) in zip(specs, tensors, strict=True):
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, spec.size, CHUNK_BYTES):
            part = data[spec.start + start : spec.start + min(start + CHUNK_BYTES, spec.size)]
            part[:] = flat[start : start + CHUNK_BYTES]
            hasher.update(part.data)
    return Bucket(BucketHeader(version, index, specs, hasher.hexdigest()), data)


def digest_of(specs: Specs, data: Bytes) -> str:
    hasher = _hasher(specs)
    for spec in specs:
        hasher.update(data[spec.start : spec.start + spec.size].data)
    return hasher.hexdigest()


def verify_bucket(bucket: Bucket, receiver: str) -> None:
    """
    Raises:
        WeightSyncError: what arrived is not what was packed; names receiver, bucket and tensors.
    """
    label = bucket.label
    found = digest_of(label.specs, bucket.data)
    if found != label.digest:
        raise WeightSyncError(
            f"{receiver} got bucket {label.index} of weights version {label.version} damaged: digest {found}, sent "
            f"{label.digest}. It holds {label.specs[0].name} to {label.specs[-1].name}."
        )


def _hasher(specs: Specs) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(repr(specs).encode())


def unpack_bucket(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a bucket, in order. They are views of its bytes: to be read, and not to be kept."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(bucket.data, dtype=torch.uint8)
    for spec in bucket.label.specs:
        piece = flat[spec.start : spec.start + spec.size]
        yield spec.name, piece.view(getattr(torch, spec.dtype)).reshape(spec.shape)
