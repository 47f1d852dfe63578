"""A publishing group between real processes: bytes arrive, faults are noticed, and nobody waits for long."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch

from demopsd_dist.util.errors import BrokenGroupError, WeightSyncError
from workers.weights.arrival_memory import ArrivalMemory
from workers.weights.buckets import (
    BucketHeader,
    broadcast_bytes,
    bucket_bytes,
    digest_of,
    layout,
    pack_bucket,
    unpack_bucket,
    verify_bucket,
)
from workers.weights.collective import CollectiveOutbox, receive_bucket
from workers.weights.device_digest import CHUNK_WORDS, word_sums
from workers.weights.process_group import PUBLISHING_GROUP, SENDER, GroupMeeting, GroupMember, open_meeting

HERE = "127.0.0.1"
LIMIT_S = 4.0
SOON_S = 2.0
LARGE = 32 << 20  # bytes of a bucket that no socket buffer holds
NAMED = list[tuple[str, torch.Tensor]]


def tensors(version: int, buckets: int, size: int = 1000) -> list[NAMED]:
    return [
        [(f"a{i}", torch.arange(size, dtype=torch.float32) + 10 * version + i), (f"b{i}", torch.ones(3).bfloat16() * i)]
        for i in range(buckets)
    ]


class InGroup:
    """A receiving process: calls of this object come through a pipe."""

    def __init__(self) -> None:
        self._member: GroupMember | None = None

    def join(self, meeting: GroupMeeting, rank: int) -> None:
        self._member = GroupMember(meeting, rank, HERE)

    def receive(self, headers: Sequence[BucketHeader]) -> dict[str, list[float]]:
        received: dict[str, list[float]] = {}
        for header in headers:
            bucket = receive_bucket(self._member, header)
            verify_bucket(bucket, "rollout 0")
            received |= {name: tensor[:5].float().tolist() for name, tensor in unpack_bucket(bucket)}
        return received


def serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    served = InGroup()
    pipe.send("ready")
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(served, name)(*arguments))
        except Exception as error:
            pipe.send(error)


@dataclass
class Peer:
    process: BaseProcess
    pipe: Connection

    def start(self, name: str, *arguments: Any) -> None:
        self.pipe.send((name, arguments))

    def result(self, within_s: float = 30.0) -> Any:
        assert self.pipe.poll(within_s), "no answer"
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def new_peer() -> Iterator[Peer]:
    context = multiprocessing.get_context("forkserver")  # imports the libraries once for all processes
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        peer = Peer(process, ours)
        assert peer.result(within_s=120) == "ready"  # it has imported its libraries
        yield peer
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def peers() -> Iterator[list[Peer]]:
    """Two receivers, and one in reserve."""
    with ExitStack() as stack:
        yield [stack.enter_context(new_peer()) for _ in range(3)]


@contextmanager
def group(outbox: CollectiveOutbox, members: Sequence[Peer], within_s: float = LIMIT_S) -> Iterator[None]:
    meeting, store = open_meeting(f"test-{time.monotonic()}", HERE, len(members) + 1, within_s, on_gpus=False)
    for rank, peer in enumerate(members, start=1):
        peer.start("join", meeting, rank)
    outbox.join(GroupMember(meeting, SENDER, HERE, store))
    for peer in members:
        peer.result()
    try:
        yield
    finally:
        outbox.close()


def outbox_for(buckets: Sequence[NAMED]) -> CollectiveOutbox:
    return CollectiveOutbox([bucket_bytes(layout((n, x.shape, x.dtype) for n, x in bucket)) for bucket in buckets])


def headers_of(version: int, buckets: Sequence[NAMED]) -> list[BucketHeader]:
    return [pack_bucket(version, index, bucket).header for index, bucket in enumerate(buckets)]


def send_all(outbox: CollectiveOutbox, version: int, buckets: Sequence[NAMED], left_out: int | None = None) -> None:
    for index, bucket in enumerate(buckets):
        packed = pack_bucket(version, index, bucket, outbox.buffer(index))
        if index != left_out:
            outbox.send(packed)
    outbox.finish()


def broken_within(limit_s: float, work: Callable[[], Any]) -> str:
    """Message of the error with which the work ends, within this time."""
    started = time.monotonic()
    with pytest.raises(BrokenGroupError) as caught:
        work()
    assert time.monotonic() - started < limit_s
    return str(caught.value)


def test_buckets_arrive_everywhere_bit_for_bit(peers: list[Peer]) -> None:
    """More buckets than the sender has buffers, twice through the same group, then through one of other members."""
    for members in (peers[:2], peers[1:]):
        outbox = outbox_for(tensors(0, 5))
        with group(outbox, members):
            for version in range(2):
                buckets = tensors(version, 5)
                for peer in members:
                    peer.start("receive", headers_of(version, buckets))
                send_all(outbox, version, buckets)
                expected = {name: tensor[:5].float().tolist() for bucket in buckets for name, tensor in bucket}
                assert [peer.result() for peer in members] == [expected] * 2


def test_nobody_to_send_to() -> None:
    buckets = tensors(0, 3)
    send_all(outbox_for(buckets), 0, buckets)
    alone = outbox_for(buckets)
    with group(alone, []):
        send_all(alone, 0, buckets)


def test_a_flipped_byte_is_noticed(peers: list[Peer]) -> None:
    buckets = tensors(3, 2)
    outbox = outbox_for(buckets)
    with group(outbox, peers[:1]):
        peers[0].start("receive", headers_of(3, buckets))
        for index, bucket in enumerate(buckets):
            packed = pack_bucket(3, index, bucket, outbox.buffer(index))
            packed.data[17] ^= index
            outbox.send(packed)
        with pytest.raises(WeightSyncError, match="rollout 0 got bucket 1 of weights version 3 damaged: digest"):
            peers[0].result()


def test_a_lost_bucket_ends_the_wait(peers: list[Peer]) -> None:
    """The next bucket, which is larger, arrives in its place and is not taken for it; without one, the wait ends."""
    buckets = [*tensors(0, 2), tensors(0, 1, 5000)[0]]
    outbox = outbox_for(buckets)
    with group(outbox, peers[:1]):
        peers[0].start("receive", headers_of(0, buckets))
        with suppress(BrokenGroupError):  # the receiver leaves the group when it notices
            send_all(outbox, 0, buckets, left_out=1)
        with pytest.raises(
            WeightSyncError, match="bucket 1 of weights version 0 was lost: in its place came bucket 2 of"
        ):
            peers[0].result()
    with group(outbox, peers[:1]):
        peers[0].start("receive", headers_of(0, buckets))
        send_all(outbox, 0, buckets, left_out=2)
        message = broken_within(LIMIT_S + SOON_S, peers[0].result)
    assert f"the {PUBLISHING_GROUP} test-" in message


def test_a_receiver_killed_in_mid_broadcast_is_noticed_at_once(peers: list[Peer]) -> None:
    """By sender and other receiver, which both go on in a new group with the one in reserve."""
    buckets = tensors(0, 2, LARGE // 4)
    outbox = outbox_for(buckets)
    headers = headers_of(0, buckets)
    with new_peer() as victim, group(outbox, [victim, peers[0]], within_s=30.0):
        victim.signal(signal.SIGSTOP)
        for peer in (victim, peers[0]):
            peer.start("receive", headers)
        outbox.send(pack_bucket(0, 0, buckets[0], outbox.buffer(0)))
        time.sleep(0.5)
        victim.signal(signal.SIGKILL)
        assert re.search("Connection (closed|reset) by peer", broken_within(SOON_S, outbox.finish))
        assert "is closed" in broken_within(SOON_S, lambda: outbox.buffer(1))
        broken_within(SOON_S, peers[0].result)
    members = [peers[0], peers[2]]
    with group(outbox, members):
        for peer in members:
            peer.start("receive", headers)
        send_all(outbox, 0, buckets)
        assert peers[0].result() == peers[2].result()


def test_a_receiver_that_hangs_is_waited_for_as_long_as_agreed(peers: list[Peer]) -> None:
    buckets = tensors(0, 4, LARGE // 8)
    outbox = outbox_for(buckets)
    with group(outbox, peers[:2], within_s=2.0):
        peers[0].signal(signal.SIGSTOP)
        try:
            peers[1].start("receive", headers_of(0, buckets))
            started = time.monotonic()
            broken_within(2.0 + SOON_S, lambda: send_all(outbox, 0, buckets))
            assert time.monotonic() - started > 1.5
            broken_within(SOON_S, peers[1].result)
        finally:
            peers[0].signal(signal.SIGCONT)


def test_a_group_that_is_not_complete_is_given_up(peers: list[Peer]) -> None:
    meeting, store = open_meeting("incomplete", HERE, 3, 1.5, on_gpus=False)
    peers[0].start("join", meeting, 1)
    message = broken_within(1.5 + SOON_S, lambda: GroupMember(meeting, SENDER, HERE, store))
    assert message.startswith("the publishing group incomplete (3 processes, rank 0 here) could not be joined")
    broken_within(1.5 + SOON_S, peers[0].result)


def test_memory_is_used_again_when_nothing_refers_to_its_bucket() -> None:
    """A tensor of a bucket, as an engine keeps it, keeps the whole bucket's memory."""
    memory = ArrivalMemory()
    named = [("a", torch.arange(100, dtype=torch.float32)), ("b", torch.ones(50))]
    packed = pack_bucket(0, 0, named)
    data = memory.take(broadcast_bytes(len(packed.data)))
    address = data.ctypes.data
    data[: len(packed.data)] = packed.data
    bucket = dataclasses.replace(packed, data=data[: len(packed.data)])
    kept = dict(unpack_bucket(bucket))["a"].reshape(10, 10)[3]
    del data, bucket
    other = memory.take(64)
    assert other.ctypes.data != address
    other[:] = 0
    assert kept.tolist() == list(range(30, 40))
    del kept
    assert memory.take(200).ctypes.data == address
    assert memory.take(100_000).ctypes.data not in (address, other.ctypes.data)


SIZE = broadcast_bytes(CHUNK_WORDS * 8 + 100)


def test_sums_of_words_change_with_every_bit() -> None:
    """Both of them, in every chunk."""
    data = torch.arange(SIZE, dtype=torch.int64).remainder(251).to(torch.uint8)
    before = word_sums(data)
    for byte, bit in ((0, 1), (7, 128), (8, 1), (CHUNK_WORDS * 8 - 1, 128), (CHUNK_WORDS * 8, 1), (SIZE - 1, 128)):
        data[byte] ^= bit
        assert all(one != other for one, other in zip(word_sums(data), before, strict=True)), (byte, bit)
        data[byte] ^= bit
    assert word_sums(data) == before


def test_sums_of_words_change_where_two_change_places() -> None:
    for distance in (1, 1000, CHUNK_WORDS):
        data = torch.zeros(SIZE, dtype=torch.uint8)
        words = data.view(torch.int64)
        words[0], words[distance] = 5, 6
        before = word_sums(data)
        words[0], words[distance] = 6, 5
        assert all(one != other for one, other in zip(word_sums(data), before, strict=True)), distance


def test_a_bucket_packed_where_a_gpu_would_hold_it() -> None:
    """Tensors of bytes take the same way as on a GPU, with the digest that is computed there."""
    named = [("a", torch.arange(7, dtype=torch.float32)), ("turned", torch.arange(6).reshape(2, 3).T)]
    specs = layout((name, tensor.shape, tensor.dtype) for name, tensor in named)
    bucket = pack_bucket(1, 0, named, torch.empty(broadcast_bytes(bucket_bytes(specs)) + 64, dtype=torch.uint8))
    assert isinstance(bucket.data, torch.Tensor)
    verify_bucket(bucket, "rollout 0")
    for (name, tensor), (unpacked, arrived) in zip(named, unpack_bucket(bucket), strict=True):
        assert name == unpacked
        assert torch.equal(tensor, arrived)
    assert bucket.header.digest != digest_of(specs, bucket.data.numpy())
    bucket.data[3] ^= 4
    with pytest.raises(WeightSyncError, match="rollout 0 got bucket 0 of weights version 1 damaged"):
        verify_bucket(bucket, "rollout 0")
