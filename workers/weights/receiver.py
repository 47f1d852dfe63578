"""Receiving end of a publish, common to rollout workers and teacher: fetch each bucket, check it, acknowledge."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import ray

from demopsd_dist.util.errors import WeightSyncError
from workers.actor_handle import Ref
from workers.cluster.spans import Traced
from workers.weights.buckets import Ack, Bucket, BucketRef, SharedSegment, verify_bucket
from workers.weights.checkpoint_format import CheckpointViews
from workers.weights.transports import MappedSegments, PublishPlan


class Receiver(Traced):
    """An actor that receives weights.

    Args:
        name: for messages ("rollout 0").
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._tensor_names: frozenset[str] | None = None  # names of all tensors of a publish; None if not known yet
        self._segments = MappedSegments()
        self.checkpoint_views: CheckpointViews = {}  # of the tensors of a publish; see `PublishPlan`

    def node(self) -> str:
        """Ray's id of the node that the actor runs on."""
        return ray.get_runtime_context().get_node_id()

    def attach(self, plan: PublishPlan, segment: SharedSegment | None) -> None:
        """Prepare for publishes of this plan; map the shared memory if that is the transport.

        Raises:
            WeightSyncError: the learners' model has other tensors.
            LostStateError: the shared memory cannot be mapped.
        """
        if self._tensor_names is not None:
            refuse_other_names(self._name, set(self._tensor_names), set(plan.names), "the learners' model")
        self.plan = plan
        self.checkpoint_views = plan.checkpoint_views
        self._tensor_names = plan.names
        if segment is not None:
            self._segments.add(segment)

    def arriving_buckets(self, version: int, bucket_refs: Sequence[Ref[BucketRef]]) -> Iterator[Bucket]:
        """Yield the buckets of a publish, each as soon as it has arrived and its digest is checked. While the caller
        loads a bucket, the next one is fetched and checked, and later ones are packed.

        Raises:
            WeightSyncError: a bucket is of another version or damaged, or a tensor is missing.
        """
        self.waited_s = self.verified_s = self.began_s = 0.0
        received: set[str] = set()
        fetcher = ThreadPoolExecutor(1)
        try:
            for fetch in [fetcher.submit(self._fetch, version, i, ref) for i, ref in enumerate(bucket_refs)]:
                bucket = fetch.result()
                self.began_s = self.began_s or time.perf_counter()
                received |= {spec.name for spec in bucket.header.specs}
                yield bucket
        finally:
            fetcher.shutdown(wait=False, cancel_futures=True)
        if self._tensor_names is not None:
            refuse_other_names(self._name, set(self._tensor_names), received, f"weights version {version}")

    def ack(self, version: int) -> Ack:
        """Acknowledgement of the publish that has just been loaded."""
        return Ack(version, None, self.waited_s, self.verified_s, time.perf_counter() - self.began_s)

    def _fetch(self, version: int, index: int, ref: Ref[BucketRef]) -> Bucket:
        started = time.perf_counter()
        bucket_ref: BucketRef = ray.get(ref)
        header = bucket_ref.header
        if (header.version, header.index) != (version, index):
            raise WeightSyncError(
                f"{self._name} waits for bucket {index} of weights version {version} and got bucket {header.index} of "
                f"version {header.version}."
            )
        stored = isinstance(bucket_ref.location, ray.ObjectRef)
        bucket = Bucket(header, ray.get(bucket_ref.location)) if stored else self._segments.bucket(bucket_ref)
        arrived = time.perf_counter()
        verify_bucket(bucket, self._name)
        self.waited_s += arrived - started
        self.verified_s += time.perf_counter() - arrived
        return bucket


def refuse_other_names(receiver: str, expected: set[str], sent: set[str], of_what: str) -> None:
    """Check that all expected tensors were sent, and no others.

    Raises:
        WeightSyncError: some tensor is missing, or is one too many.
    """
    for names, problem in ((expected - sent, "was not sent"), (sent - expected, "does not know")):
        if names:
            raise WeightSyncError(f"{receiver} {problem} {len(names)} of the tensors of {of_what}, first {min(names)}.")
