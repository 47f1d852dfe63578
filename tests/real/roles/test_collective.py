"""Weights through a process group: to engines and teacher, past a dead receiver, and to one that joins later.

The receivers are actors that compute with transformers instead of vLLM, which starts sooner; learner and teacher are
those of a run. `tests/real/runs/test_methods.py` trains with real engines.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from demopsd_dist.config import Config, Precision, WeightSource
from demopsd_dist.data.records import Tokens
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import LostWorkerError, WeightSyncError
from tests.real.conftest import Spares, demo, renew
from tests.real.roles.test_weights import inside, moved, planted
from workers.actor_group import ActorGroup
from workers.cluster.placement import Bundle
from workers.cluster.resource_claim import ResourceClaim
from workers.forward import load_causal_lm
from workers.rollout.dispatch import RolloutWorkers
from workers.rollout.pool import FixedPool
from workers.teacher import fsdp
from workers.weights.buckets import Ack, Bucket, BucketRef, InBroadcast, unpack_bucket
from workers.weights.publisher import WeightPublisher
from workers.weights.receiver import Receiver

RATE = 0.25
WORDS = ("learner.num_workers=1", "weights.bucket_mib=1", "weights.transport=collective", "method=sdpo")
CONFIG = demo(*WORDS, f"teacher.ema_rate={RATE}", "limits.call_s=60")


class PlainEngine(Receiver):
    """An engine that takes a publish as a rollout worker does, with a plain forward of the canary."""

    def __init__(self, rank: int, config: Config, folder: Path) -> None:
        super().__init__(f"rollout {rank}")
        self.model = load_causal_lm(folder, Precision.float32).eval()
        self.dies_at = -1
        self.version = -1

    def pause(self) -> None:
        pass

    def mark_version(self, version: int) -> None:
        self.version = version

    @torch.inference_mode()
    def receive(self, version: int, bucket_refs: Any, canary: Tokens) -> Ack:
        own = dict(self.model.named_parameters())
        for bucket in self.arriving_buckets(version, bucket_refs):
            if bucket.header.index == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            for name, tensor in unpack_bucket(bucket):
                own[name].copy_(tensor)
        self.version = version
        tokens = torch.from_numpy(canary).long()
        logp = self.model(tokens[None]).logits[0, :-1].log_softmax(-1)
        return Ack(version, logp.gather(1, tokens[1:, None])[:, 0].numpy())


class ShrinkingPool(FixedPool):
    """A pool that drops a lost worker, and replaces none by itself."""

    def __init__(self, group: RolloutWorkers) -> None:
        super().__init__(group, CONFIG)
        self.lost: list[int] = []

    def report_lost_worker(self, rank: int, error: LostWorkerError) -> None:
        self.lost.append(rank)
        self.group.remove(rank)


@dataclass
class Published:
    """Two engines, a teacher, a learner, and an engine in reserve."""

    pool: ShrinkingPool
    publisher: WeightPublisher
    spares: Spares
    reserve: Any
    said: list[str] = field(default_factory=list)
    version: int = 0

    def publish(self, *, changed: bool = True) -> None:
        self.version += 1
        asyncio.run(self.publisher.publish(self.version, changed=changed))

    def refuse(self, message: str) -> None:
        with pytest.raises(WeightSyncError, match=message):
            self.publish()

    async def join(self, rank: int, handle: Any) -> None:
        """Let an engine join as this rank."""
        new = cast(RolloutWorkers, ActorGroup("rollout", {rank: handle}, LostWorkerError))
        await self.publisher.sync_new_worker(new, lambda: self.pool.group.add(new.handles))

    def leave(self, rank: int) -> Any:
        """Take an engine out, without its weights, to let it join as another."""
        inside(self.pool.group, rank, forget)
        return self.pool.group._handles.pop(rank)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return inside(self.spares.learner, 0, tensors_of_learner)

    def check(self, ranks: list[int]) -> None:
        """Check that these engines serve, and have the learner's weights bit for bit."""
        weights = self.weights
        assert self.pool.group.ranks == ranks
        for rank in ranks:
            held = inside(self.pool.group, rank, tensors_of_engine)
            assert held.keys() == weights.keys()
            assert all(np.array_equal(held[name], weights[name]) for name in held)
            assert inside(self.pool.group, rank, lambda worker: worker.version) == self.version


def tensors_of_learner(worker: Any) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for bucket in worker._buckets for name, parameter in bucket}


def tensors_of_engine(worker: Any) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in worker.model.named_parameters()}


def forget(worker: Any) -> None:
    for parameter in worker.model.parameters():
        parameter.data.zero_()


def average(worker: Any) -> dict[str, np.ndarray]:
    tensors = fsdp.tensors_of(worker._models[WeightSource.ema])
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def die_at(bucket: int) -> Callable[[Any], None]:
    def plant(worker: Any) -> None:
        worker.dies_at = bucket

    return plant


@pytest.fixture(scope="module")
def published(spares: Spares) -> Iterator[Published]:
    for group in (spares.learner, spares.teacher):
        renew(group, CONFIG)
    claim = ResourceClaim([Bundle("rollout", rank, 0.1, 0) for rank in range(3)])
    engines = claim.spawn_group(
        "rollout", PlainEngine, lambda rank: (rank, CONFIG, MODEL_DIR), {"OMP_NUM_THREADS": "1"}, LostWorkerError
    )
    handles = engines.handles
    pool = ShrinkingPool(cast(RolloutWorkers, ActorGroup("rollout", {0: handles[0], 1: handles[1]}, LostWorkerError)))
    publisher = WeightPublisher(spares.learner, pool, spares.teacher, CONFIG)
    published = Published(pool, publisher, spares, handles[2])
    publisher.say = published.said.append
    asyncio.run(publisher.start())
    published.version = -1
    published.publish()
    yield published
    engines.kill()
    claim.release()


def test_one_group_as_long_as_its_members_stay(published: Published) -> None:
    """Every byte arrives, by as many remote calls as there are buckets and receivers."""
    count = len(published.publisher.plan.buckets)
    assert count > 3
    groups = (published.spares.learner, published.pool.group, published.spares.teacher)
    before = sum(group.call_count for group in groups)
    with moved(published.spares.learner, 1.01):
        published.publish()
        published.check([0, 1])
    calls = sum(group.call_count for group in groups) - before
    assert calls == (count + 2) + 2 * 2 + 2, "gather, canary and finish; pause and receive; turn and receive"


def test_a_byte_flipped_on_the_way_is_refused(published: Published) -> None:
    def flip(worker: Any) -> None:
        send = worker._outbox.send

        def flipping(bucket: Bucket) -> BucketRef:
            bucket.data[70] ^= bucket.header.index == 2
            return send(bucket)

        worker._outbox.send = flipping

    with planted(published.spares.learner, 0, flip, send_again):
        published.refuse(r"(rollout|teacher) \d got bucket 2 of weights version \d+ damaged: digest")
    published.publish()
    published.check([0, 1])


def test_a_bucket_lost_on_the_way_is_refused(published: Published) -> None:
    """The next one arrives in its place."""

    def lose(worker: Any) -> None:
        send = worker._outbox.send
        worker._outbox.send = lambda bucket: (
            BucketRef(bucket.header, InBroadcast()) if bucket.header.index == 1 else send(bucket)
        )

    with planted(published.spares.learner, 0, lose, send_again):
        published.refuse(
            r"bucket 1 of weights version \d+ was lost: in its place came bucket 2 of version \d+, \d+ bytes"
        )
    published.publish()
    published.check([0, 1])


def send_again(worker: Any) -> None:
    del worker._outbox.send


def test_a_receiver_that_dies_in_mid_broadcast(published: Published) -> None:
    """It is lost, and the publish is repeated to the others; the teacher averages each tensor once all the same. The
    replacement gets the same weights, and so does a worker that is added after the learner has begun its next step,
    which waits for the weights of that step."""
    before, old = inside(published.spares.teacher, 0, average), published.weights
    inside(published.pool.group, 1, die_at(2))
    with moved(published.spares.learner, 1.01):
        published.publish()
        assert published.pool.lost == [1]
        assert [line for line in published.said if "repeated to the receivers that are left" in line]
        published.check([0])
        for name, averaged in inside(published.spares.teacher, 0, average).items():
            expected = before[name] + np.float32(RATE) * (published.weights[name] - before[name])
            np.testing.assert_allclose(averaged, expected, rtol=1e-6, atol=1e-7)
            assert not np.array_equal(published.weights[name], old[name])
        asyncio.run(published.join(1, published.reserve))
        published.check([0, 1])
        published.publish()
        published.check([0, 1])

        def step(worker: Any) -> None:
            worker.version += 1

        async def join_late() -> None:
            joining = asyncio.ensure_future(published.join(2, published.leave(0)))
            assert not (await asyncio.wait([joining], timeout=1.0))[0]
            published.version += 1
            await published.publisher.publish(published.version, changed=False)
            await asyncio.wait_for(joining, 60)

        inside(published.spares.learner, 0, step)
        asyncio.run(join_late())
        published.check([1, 2])
        published.publish()
        published.check([1, 2])


def test_weights_that_changed_without_a_step_reach_nobody(published: Published) -> None:
    """A worker that joins is given the last publish, or nothing."""
    published.publish()
    message = "have changed since they were published as version"
    with moved(published.spares.learner, 1.01), pytest.raises(WeightSyncError, match=message):
        asyncio.run(published.join(3, published.leave(2)))
