"""Receiving end of a publish, common to rollout workers and teacher: fetch each bucket, check it, acknowledge."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import ray
from ray.exceptions import RayError

from demopsd_dist.util.errors import BrokenGroupError, WeightSyncError
from workers.actor_handle import Ref
from workers.cluster.spans import Traced
from workers.weights.buckets import Ack, Bucket, BucketRef, InBroadcast, Segment, verify_bucket
from workers.weights.checkpoint_format import CheckpointViews
from workers.weights.collective import AHEAD, receive_bucket
from workers.weights.process_group import PUBLISHING_GROUP, GroupMeeting, GroupMember
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
        self._in_group = False  # whether publishes come by a process group
        self._member: GroupMember | None = None  # None if the engine's child processes are its members
        self.checkpoint_views: CheckpointViews = {}  # of the tensors of a publish; see `PublishPlan`

    def node(self) -> str:
        """Ray's id of the node that the actor runs on."""
        return ray.get_runtime_context().get_node_id()

    def turn(self) -> None:
        """Return when the calls before this one have ended."""

    def attach(self, plan: PublishPlan, segment: Segment | None) -> None:
        """Prepare for publishes of this plan; map the sender's memory if that is the transport.

        Raises:
            WeightSyncError: the learners' model has other tensors.
            LostStateError: the shared memory cannot be mapped.
            ConfigError: it is of another GPU.
        """
        if self._tensor_names is not None:
            refuse_other_names(self._name, set(self._tensor_names), set(plan.names), "the learners' model")
        self.plan = plan
        self.checkpoint_views = plan.checkpoint_views
        self._tensor_names = plan.names
        self._leave_group()
        if segment is None:
            self._segments.clear()
        else:
            self._segments.add(segment)

    def join_group(self, meeting: GroupMeeting, rank: int) -> None:
        """Join a publishing group in place of the last one.

        Args:
            rank: of this process; or of the first of the engine's processes, if it has several.

        Raises:
            BrokenGroupError: the others did not join in time.
        """
        self._leave_group()
        self._member = self._join(meeting, rank, ray.util.get_node_ip_address())
        self._in_group = True

    def _join(self, meeting: GroupMeeting, rank: int, address: str) -> GroupMember | None:
        return GroupMember(meeting, rank, address)

    def _leave_group(self) -> None:
        self._in_group = False
        if self._member is not None:
            self._member.close()
            self._member = None

    def arriving_buckets(self, version: int, bucket_refs: Sequence[Ref[BucketRef]]) -> Iterator[Bucket]:
        """Yield the buckets of a publish, each as soon as it has arrived and its digest is checked. While the caller
        loads a bucket, the next one is fetched and checked, and later ones are packed.

        Raises:
            WeightSyncError: a bucket is of another version or damaged, or a tensor is missing.
            BrokenGroupError: the process group that brings the buckets is broken. This process leaves the group
                whatever goes wrong, so that the others do not wait for it.
        """
        self.waited_s = self.verified_s = self.began_s = 0.0
        received: set[str] = set()
        complete = False
        fetcher = ThreadPoolExecutor(1)
        fetches = (fetcher.submit(self._fetch, version, i, ref) for i, ref in enumerate(bucket_refs))
        ahead = deque(islice(fetches, AHEAD if self._in_group else None))
        try:
            while ahead:
                bucket = ahead.popleft().result()
                self.began_s = self.began_s or time.perf_counter()
                received |= {spec.name for spec in bucket.header.specs}
                yield bucket
                ahead.extend(islice(fetches, 1))
            complete = True
        finally:
            fetcher.shutdown(wait=False, cancel_futures=True)
            if not complete and self._member is not None:
                self._member.close()
        if self._tensor_names is not None:
            refuse_other_names(self._name, set(self._tensor_names), received, f"weights version {version}")

    def ack(self, version: int) -> Ack:
        """Acknowledgement of the publish that has just been loaded."""
        self._segments.wait_until_read()
        return Ack(version, None, self.waited_s, self.verified_s, time.perf_counter() - self.began_s)

    def _fetch(self, version: int, index: int, ref: Ref[BucketRef]) -> Bucket:
        started = time.perf_counter()
        bucket_ref = self._get(ref, index)
        header = bucket_ref.header
        if (header.version, header.index) != (version, index):
            raise WeightSyncError(
                f"{self._name} waits for bucket {index} of weights version {version} and got bucket {header.index} of "
                f"version {header.version}."
            )
        bucket = self._bucket(bucket_ref)
        arrived = time.perf_counter()
        if bucket.location != InBroadcast():  # otherwise the engine's processes check it
            verify_bucket(bucket, self._name)
        self.waited_s += arrived - started
        self.verified_s += time.perf_counter() - arrived
        return bucket

    def _get(self, ref: Ref[BucketRef], index: int) -> BucketRef:
        """Wait until the learners have sent a bucket, or failed to."""
        try:
            return ray.get(ref)
        except RayError as error:
            if not self._in_group:
                raise
            cause = str(getattr(error, "cause", error)).splitlines()[0]
            raise BrokenGroupError(
                f"{self._name} waits for bucket {index}, which the {PUBLISHING_GROUP} does not bring: {cause}"
            ) from None

    def _bucket(self, bucket_ref: BucketRef) -> Bucket:
        """Bucket at the reference's location."""
        if isinstance(bucket_ref.location, ray.ObjectRef):
            return Bucket(bucket_ref.header, ray.get(bucket_ref.location))
        if isinstance(bucket_ref.location, InBroadcast):
            return self._broadcast_bucket(bucket_ref)
        return self._segments.bucket(bucket_ref)

    def _broadcast_bucket(self, bucket_ref: BucketRef) -> Bucket:
        return receive_bucket(self._member, bucket_ref.header)


def refuse_other_names(receiver: str, expected: set[str], sent: set[str], of_what: str) -> None:
    """Check that all expected tensors were sent, and no others.

    Raises:
        WeightSyncError: some tensor is missing, or is one too many.
    """
    for names, problem in ((expected - sent, "was not sent"), (sent - expected, "does not know")):
        if names:
            raise WeightSyncError(f"{receiver} {problem} {len(names)} of the tensors of {of_what}, first {min(names)}.")
