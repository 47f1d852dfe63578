"""Weights on the way from the learners to everyone who samples or scores: packed buckets, each with a digest.

A bucket is one flat array of bytes and the list of tensors in it. It goes into Ray's object store once, whatever the
number of receivers; each receiver checks the digest of what it got before it loads anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from demopsd_dist.errors import WeightSyncError


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: str  # torch's name, "float32"
    start: int  # byte offset in the bucket
    size: int  # bytes


@dataclass(frozen=True)
class Bucket:
    """Some tensors of a model, packed. `digest` is of the names, shapes and bytes."""

    version: int
    index: int
    specs: tuple[TensorSpec, ...]
    data: NDArray[np.uint8]
    digest: str


def digest_of(specs: tuple[TensorSpec, ...], data: NDArray[np.uint8]) -> str:
    hasher = hashlib.blake2b(repr(specs).encode(), digest_size=16)
    hasher.update(data.data)
    return hasher.hexdigest()


def pack_bucket(version: int, index: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Bucket:
    """Copy named tensors, from any device, into one bucket."""
    specs: list[TensorSpec] = []
    parts: list[NDArray[np.uint8]] = []
    start = 0
    for name, tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        specs.append(TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), start, flat.size))
        parts.append(flat)
        start += flat.size
    data = np.concatenate(parts)
    return Bucket(version, index, tuple(specs), data, digest_of(tuple(specs), data))


def take_buckets(refs: list[ray.ObjectRef], version: int, receiver: str, expected: set[str] | None) -> list[Bucket]:
    """The buckets of a publish, out of the object store, checked before anything is loaded.

    Args:
        receiver: "rollout 0", for the messages.
        expected: names of all tensors that must be there; None where that is not known yet.

    Raises:
        WeightSyncError: they are of another version, damaged, or not all there.
    """
    buckets: list[Bucket] = ray.get(refs)
    found = [(bucket.version, bucket.index) for bucket in buckets]
    if found != [(version, index) for index in range(len(buckets))]:
        raise WeightSyncError(f"{receiver} waits for weights version {version} and got (version, bucket) {found}.")
    for bucket in buckets:
        verify_bucket(bucket, receiver)
    if expected is not None:
        sent = {spec.name for bucket in buckets for spec in bucket.specs}
        for names, how in ((expected - sent, "was not sent"), (sent - expected, "does not know")):
            if names:
                raise WeightSyncError(
                    f"{receiver} {how} {len(names)} of the tensors of weights version {version}, first {min(names)}."
                )
    return buckets


def verify_bucket(bucket: Bucket, receiver: str) -> None:
    """
    Raises:
        WeightSyncError: what arrived is not what was packed; names receiver, bucket and tensors.
    """
    found = digest_of(bucket.specs, bucket.data)
    if found != bucket.digest:
        raise WeightSyncError(
            f"{receiver} got bucket {bucket.index} of weights version {bucket.version} damaged: digest {found}, sent "
            f"{bucket.digest}. It holds {bucket.specs[0].name} to {bucket.specs[-1].name}."
        )


def unpack_bucket(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a bucket, in order."""
    flat = torch.from_numpy(np.array(bucket.data))  # a copy: the object store's pages are read-only
    for spec in bucket.specs:
        piece = flat[spec.start : spec.start + spec.size]
        yield spec.name, piece.view(getattr(torch, spec.dtype)).reshape(spec.shape)
