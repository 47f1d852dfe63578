"""Loading of arriving weights into an engine: in this process, or in all processes of an engine with
`tensor_parallel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from demopsd_dist.util.errors import BrokenGroupError, WeightSyncError
from workers.weights.buckets import Bucket, BucketRef, InBroadcast
from workers.weights.checkpoint_format import CheckpointViews
from workers.weights.process_group import PUBLISHING_GROUP, GroupMeeting
from workers.weights.transports import SharedMemoryOutbox


class EngineLoading:
    """Way of weights into one engine.

    Args:
        engine: vLLM's engine.
        name: for messages ("rollout 0").
        processes: number of the engine's processes; if it is one, it is this process.
        bucket_sizes: returns the bytes of each bucket.
    """

    def __init__(self, engine: Any, name: str, processes: int, bucket_sizes: Callable[[], Sequence[int]]) -> None:
        self._engine, self._name, self._processes, self._bucket_sizes = engine, name, processes, bucket_sizes
        self._copies: SharedMemoryOutbox | None = None  # buckets for the engine's child processes

    def load(self, buckets: Iterable[Bucket], views: CheckpointViews) -> None:
        """Load all buckets of a publish.

        Raises:
            WeightSyncError: a bucket arrived late, damaged or incomplete, or a process could not load its tensors.
            BrokenGroupError: a broadcast to the engine's processes failed.
        """
        if self._processes == 1:
            self._update(buckets, complete=True, views=views)
        else:
            self._load_in_processes(buckets, views)

    def join_group(self, meeting: GroupMeeting, first_rank: int, address: str) -> None:
        """Let each child process of the engine join a publishing group, with ranks from `first_rank`.

        Raises:
            BrokenGroupError: the others did not join in time.
        """
        try:
            self._engine.collective_rpc("join_weight_group", args=(meeting, first_rank, address))
        except RuntimeError as error:
            raise _error_of_a_process(self._name, error) from None

    def _load_in_processes(self, buckets: Iterable[Bucket], views: CheckpointViews) -> None:
        try:
            for bucket in buckets:
                of_bucket = {spec.name: views[spec.name] for spec in bucket.header.specs if spec.name in views}
                self._update([self._for_processes(bucket)], complete=False, views=of_bucket)
            self._update([], complete=True, views={})
        except BaseException as error:
            with suppress(Exception):
                self._engine.collective_rpc("finish_weight_update")  # otherwise the next update could not begin
            if isinstance(error, RuntimeError):  # vLLM reports any error in a child process as a RuntimeError
                raise _error_of_a_process(self._name, error) from None
            raise

    def _for_processes(self, bucket: Bucket) -> BucketRef:
        """Reference that all processes can follow: to the broadcast that they are part of, or to shared memory, where
        the bucket arrived or is copied now."""
        if bucket.location is not None:
            return BucketRef(bucket.header, bucket.location)
        assert isinstance(bucket.data, np.ndarray)
        self._copies = self._copies or SharedMemoryOutbox(self._bucket_sizes())
        memory = self._copies.buffer(bucket.header.index)
        memory[: len(bucket.data)] = bucket.data
        return self._copies.send(bucket)

    def _update(self, buckets: Iterable[Bucket | BucketRef], complete: bool, views: CheckpointViews) -> None:
        update = {"buckets": buckets, "complete": complete, "checkpoint_views": views}
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update})


def left_to_processes(bucket_ref: BucketRef) -> Bucket:
    """Bucket without bytes, which the processes of the engine receive and check themselves."""
    return Bucket(bucket_ref.header, np.empty(0, np.uint8), InBroadcast())


def _error_of_a_process(name: str, error: RuntimeError) -> WeightSyncError | BrokenGroupError:
    if PUBLISHING_GROUP in str(error):
        return BrokenGroupError(f"{name}: {str(error).splitlines()[0]}")
    return WeightSyncError(f"{name} could not load weights: {error}")
