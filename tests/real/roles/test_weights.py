"""Publishing weights: nothing that goes wrong on the way passes the next publish.

Faults are planted in the living actors of the session's roles, and removed again; a publish after each shows that an
engine takes whole weights also after it was left half loaded.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from demopsd_dist.config import Precision, Transport
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import WeightSyncError
from tests.real.conftest import Ranks, RealRoles, Spares, demo, posted, renew
from workers.actor_group import ActorGroup, no_actors
from workers.forward import load_causal_lm
from workers.rollout.pool import FixedPool
from workers.rollout.worker import RolloutWorker
from workers.weights.buckets import Bucket, unpack_bucket
from workers.weights.canary import canary_tokens
from workers.weights.publisher import WeightPublisher
from workers.weights.receiver import Receiver

NO_ACTORS = no_actors("none")
Do = Callable[[Any], Any]


def inside(group: ActorGroup, rank: int, do: Do) -> Any:
    """Call it in the actor, with the worker."""
    return ray.get(group.handles[rank].run(do), timeout=60)


@contextmanager
def planted(group: ActorGroup, rank: int, fault: Do, repair: Do) -> Iterator[None]:
    inside(group, rank, fault)
    try:
        yield
    finally:
        inside(group, rank, repair)


@contextmanager
def moved(group: ActorGroup, factor: float) -> Iterator[None]:
    """The learners' weights, as if they had learned something."""

    def move(worker: Any) -> None:
        parameters = [p for bucket in worker._buckets for _, p in bucket]
        worker._kept = [p.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.data.mul_(factor)

    def restore(worker: Any) -> None:
        parameters = [p for bucket in worker._buckets for _, p in bucket]
        for parameter, kept in zip(parameters, worker._kept, strict=True):
            parameter.data.copy_(kept)

    for rank in range(len(group)):
        inside(group, rank, move)
    try:
        yield
    finally:
        for rank in range(len(group)):
            inside(group, rank, restore)


def small_model(folder: Path, **changes: Any) -> Qwen3ForCausalLM:
    """A model of random weights, written as a folder."""
    torch.manual_seed(0)
    settings = load_causal_lm(MODEL_DIR, Precision.float32).config.to_dict()
    model = Qwen3ForCausalLM(Qwen3Config(**{**settings, **changes}))
    left_out = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(MODEL_DIR, folder, ignore=left_out, dirs_exist_ok=True)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def published(roles: RealRoles) -> Iterator[RealRoles]:
    """The roles, with whole weights in it, also afterwards."""
    roles.publish()
    yield roles
    roles.publish()


def test_a_version_of_unchanged_weights_is_the_teachers_too(published: RealRoles) -> None:
    """A checkpoint of such a step would otherwise let the average move twice after a resume."""
    teacher = published.actors.groups["teacher"]
    before = inside(teacher, 0, lambda worker: worker.version)
    try:
        asyncio.run(published.roles.weights.publish(before + 1, changed=False))
        assert inside(teacher, 0, lambda worker: worker.version) == before + 1
        assert inside(published.actors.groups["rollout"], 0, lambda worker: worker.version) == before + 1
    finally:
        asyncio.run(published.roles.weights.publish(before, changed=False))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_a_tensor_left_out(published: RealRoles, name: str) -> None:
    """vLLM fuses the second with two others, and would take these for the whole."""

    def leave_out(worker: Any) -> None:
        worker._whole = worker._buckets[0]
        worker._buckets[0] = [pair for pair in worker._whole if pair[0] != name]

    def put_back(worker: Any) -> None:
        worker._buckets[0] = worker._whole

    message = f"(rollout|teacher) 0 was not sent 1 of the tensors of weights version {published.version}, first {name}"
    with planted(published.actors._learners, 0, leave_out, put_back), pytest.raises(WeightSyncError, match=message):
        published.publish()


def test_a_byte_flipped_on_the_way(published: RealRoles) -> None:
    def flip_from_now_on(worker: Any) -> None:
        send = worker._outbox.send

        def flipping(bucket: Bucket) -> Any:
            bucket.data[bucket.header.specs[3].start + 5] ^= 1
            return send(bucket)

        worker._outbox.send = flipping

    def stop(worker: Any) -> None:
        del worker._outbox.send

    message = (
        rf"(rollout|teacher) \d got bucket 0 of weights version {published.version} damaged: digest .* It holds .* to "
    )
    with planted(published.actors._learners, 0, flip_from_now_on, stop), pytest.raises(WeightSyncError, match=message):
        published.publish()


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1.02, "rollout 1 does not have the weights of version"), (1 + 1e-5, "rollout 1 kept its weights")],
)
def test_an_engine_that_keeps_its_weights(published: RealRoles, factor: float, message: str) -> None:
    """An engine that acknowledges all buckets and loads none is refused, also where its values are within the allowed
    difference. The other engine, and the number of calls, are as they should be."""

    def drop_from_now_on(worker: Any) -> None:
        call = worker._engine.collective_rpc

        def dropping(method: str, **rest: Any) -> Any:
            if method == "update_weights":
                return list(rest["kwargs"]["update_info"]["buckets"])
            return None if "weight_update" in method else call(method, **rest)

        worker._engine.collective_rpc = dropping

    def stop(worker: Any) -> None:
        del worker._engine.collective_rpc

    actors = published.actors
    groups = (actors._learners, actors.pool.group, actors._teacher)
    with planted(actors.pool.group, 1, drop_from_now_on, stop), moved(actors._learners, factor):
        before = sum(group.call_count for group in groups)
        with pytest.raises(WeightSyncError, match=message):
            published.publish()
        assert sum(group.call_count for group in groups) - before == 2 * (1 + 1) + 2 + 1, "one bucket, two learners"


def test_weights_of_another_version(published: RealRoles) -> None:
    bucket_refs = posted(7, load_causal_lm(MODEL_DIR, Precision.float32).named_parameters())
    canary = canary_tokens(272, 32)
    rollouts = published.actors.pool.group
    with pytest.raises(WeightSyncError, match="waits for bucket 0 of weights version 3 and got bucket 0 of version 7"):
        asyncio.run(
            rollouts.each(lambda w, _: w(RolloutWorker.receive, 3, bucket_refs, canary), within_s=60, what="an ack")
        )


def test_a_tied_head(ranks: Ranks, spares: Spares, tmp_path: Path) -> None:
    """A tied head is sent once, as the embedding. An engine that packs its weights keeps the old head unless it packs
    again; where it does not, the canary shows it."""
    small_model(tmp_path, tie_word_embeddings=True)

    def forget_it(worker: Any) -> None:
        from workers.rollout import vllm_weights

        worker._pack = vllm_weights.pack_tied_heads
        vllm_weights.pack_tied_heads = lambda model: None

    def remember_it(worker: Any) -> None:
        from workers.rollout import vllm_weights

        vllm_weights.pack_tied_heads = worker._pack

    group = ranks.start("learner.num_workers=1", "learner.zero_stage=0", folder=tmp_path)._group
    rollouts = spares.rollout
    renew(rollouts, demo(), tmp_path, random_weights=True)
    publisher = WeightPublisher(group, FixedPool(rollouts, demo()), NO_ACTORS, demo())
    asyncio.run(publisher.start())
    assert "lm_head.weight" not in publisher.plan.names
    asyncio.run(publisher.publish(0))
    with moved(group, 1.1):
        message = "rollout 0 does not have the weights of version 1"
        with planted(rollouts, 0, forget_it, remember_it), pytest.raises(WeightSyncError, match=message):
            asyncio.run(publisher.publish(1))
        asyncio.run(publisher.publish(1))


def test_zero_3_publishes_what_is_gathered(ranks: Ranks, tmp_path: Path) -> None:
    """Two ranks that hold half of each tensor, several buckets, both transports: bit for bit the whole model."""
    large = small_model(tmp_path, hidden_size=512)
    words = ["learner.num_workers=2", "learner.zero_stage=3", "weights.bucket_mib=4"]
    group = ranks.start(*words, folder=tmp_path)._group
    for version, transport in enumerate((Transport.shared_memory, Transport.object_store)):
        config = demo(*words, f"weights.transport={transport.name}")
        publisher = WeightPublisher(group, FixedPool(NO_ACTORS, config), NO_ACTORS, config)
        asyncio.run(publisher.start())
        before = group.call_count
        asyncio.run(publisher.publish(version))
        count = len(publisher.plan.buckets)
        assert count > 3
        assert group.call_count - before == 2 * (count + 1)
        tensors = received(publisher, version)
        assert tensors.keys() == dict(large.named_parameters()).keys()
        for name, parameter in large.named_parameters():
            assert torch.equal(tensors[name], parameter), name


def received(publisher: WeightPublisher, version: int) -> dict[str, torch.Tensor]:
    """Tensors that a receiver in this process gets."""
    receiver = Receiver("here")
    receiver.attach(publisher.plan, publisher.segment)
    bucket_refs = [ray.put(bucket_ref) for bucket_ref in publisher.bucket_refs]
    return {
        name: tensor.clone()
        for bucket in receiver.arriving_buckets(version, bucket_refs)
        for name, tensor in unpack_bucket(bucket)
    }
