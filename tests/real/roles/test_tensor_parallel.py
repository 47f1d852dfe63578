"""An engine of two processes that share its weights: it samples and receives weights as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from demopsd_dist.config import Precision
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Task
from demopsd_dist.util.errors import WeightSyncError
from tests.real.conftest import Spares, demo, engine_processes, moved_model, posted, renew
from tests.real.runs.test_training import logits_of, logp_of
from workers.actor_group import ActorGroup
from workers.forward import load_causal_lm
from workers.rollout.group import RolloutGroup
from workers.rollout.pool import FixedPool
from workers.rollout.worker import RolloutWorker
from workers.weights.buckets import layout, pack_bucket
from workers.weights.canary import canary_tokens
from workers.weights.collective import CollectiveOutbox
from workers.weights.process_group import SENDER, GroupMember, open_meeting
from workers.weights.transports import PublishPlan, SharedMemoryOutbox

CONFIG = demo("rollout.tensor_parallel=2")


def broadcast(
    group: ActorGroup, plan: PublishPlan, buckets: Sequence[Any]
) -> tuple[CollectiveOutbox, list[ray.ObjectRef]]:
    """Let both processes join a process group, and start to send them the buckets from here, out of the outbox."""
    here = ray.util.get_node_ip_address()
    meeting, store = open_meeting("two processes", here, 3, 60, on_gpus=False)
    joined = group.start(lambda worker, _: worker(RolloutWorker.join_group, meeting, 1))
    outbox = CollectiveOutbox(plan.sizes)
    outbox.join(GroupMember(meeting, SENDER, here, store))
    asyncio.run(group.collect(joined, within_s=60, what="the group"))
    packed = [pack_bucket(0, index, bucket, outbox.buffer(index)) for index, bucket in enumerate(buckets)]
    return outbox, [ray.put(outbox.send(bucket)) for bucket in packed]


@pytest.mark.long
def test_weights_reach_both_processes(spares: Spares, task: Task, tmp_path: Path) -> None:
    """Weights by shared memory, by a process group and by Ray's object store. The canary, and tokens sampled then, have
    the log-probabilities of plain forwards of the new model."""
    model = moved_model()
    model.save_pretrained(tmp_path)
    cut = len(named := list(model.named_parameters())) // 2
    buckets = [named[:cut], named[cut:]]
    specs = [layout((name, tensor.shape, tensor.dtype) for name, tensor in bucket) for bucket in buckets]
    plan, canary = PublishPlan("here", tuple(specs), model.config.vocab_size), canary_tokens(256, 32)
    memory = SharedMemoryOutbox(plan.sizes)
    base = load_causal_lm(MODEL_DIR, Precision.float32).state_dict()
    old = [[(name, base[name]) for name, _ in bucket] for bucket in buckets]
    shared = [memory.send(pack_bucket(0, i, old[i], memory.buffer(i))) for i in range(len(old))]
    group = spares.rollout
    renew(group, CONFIG, random_weights=True)

    async def publish(version: int, bucket_refs: list[ray.ObjectRef]) -> np.ndarray:
        (ack,) = await group.each(
            lambda worker, _: worker(RolloutWorker.receive, version, bucket_refs, canary), within_s=60, what="an ack"
        )
        assert ack.canary_logp_T is not None
        return ack.canary_logp_T

    asyncio.run(
        group.each(
            lambda worker, _: worker(RolloutWorker.attach, plan, memory.segment), within_s=60, what="shared memory"
        )
    )
    logps = [asyncio.run(publish(0, [ray.put(bucket_ref) for bucket_ref in shared]))]
    damaged = pack_bucket(0, 0, old[0], memory.buffer(0))
    damaged.data[5] ^= 1
    with pytest.raises(WeightSyncError, match="rollout 0 got bucket 0 of weights version 0 damaged"):
        asyncio.run(publish(0, [ray.put(memory.send(damaged))]))
    outbox, sent = broadcast(group, plan, old)
    logps.append(asyncio.run(publish(0, sent)))
    outbox.finish()
    logps.append(asyncio.run(publish(1, posted(1, *buckets))))
    for logp, folder in zip(logps, (MODEL_DIR, MODEL_DIR, tmp_path), strict=True):
        (logits,) = logits_of(folder, [(canary[:1], canary[1:])])
        np.testing.assert_allclose(logp, logits.log_softmax(-1).numpy()[np.arange(31), canary[1:]], atol=1e-3)
    assert len(engine_processes()) == 2
    sampling = Sampling(samples=4, temperature=1.0, top_p=1.0, max_response_tokens=64, seed="two")
    groups = asyncio.run(RolloutGroup(FixedPool(group, CONFIG), CONFIG).sample(task.test[:4], sampling))
    rollouts = [rollout for of_prompt in groups for rollout in of_prompt]
    values = logits_of(tmp_path, [(rollout.prompt.tokens, rollout.tokens_T) for rollout in rollouts])
    for rollout, logits_TV in zip(rollouts, values, strict=True):
        np.testing.assert_allclose(rollout.logp_T, logp_of(logits_TV, rollout), atol=1e-3)
        assert set(rollout.version_T) == {1}
