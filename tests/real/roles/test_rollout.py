"""A rollout worker: weights that arrive while it samples, abandoned requests, the engine's top k and options."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demopsd_dist.config import Precision
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Task
from demopsd_dist.training.step_prompts import evaluation_sampling, train_sampling
from tests.real.conftest import Spares, WatchedRollouts, demo, moved_model, posted, renew
from tests.real.runs.test_training import logits_of, logp_of
from workers.actor_group import ActorGroup
from workers.forward import ResponseModel, load_causal_lm
from workers.learner.canary_forward import canary_logp
from workers.rollout.group import RolloutGroup
from workers.rollout.pool import FixedPool
from workers.rollout.worker import RolloutWorker
from workers.weights.canary import canary_tokens

TOP_K = 20
CANARY = canary_tokens(256, 32)
CONFIG = demo("rollout.on_publish=keep", "demopsd.support=rollout", f"demopsd.top_k={TOP_K}")


@pytest.fixture(scope="module")
def worker(spares: Spares) -> ActorGroup[WatchedRollouts]:
    renew(spares.rollout, CONFIG)
    return spares.rollout


async def unfinished(worker: ActorGroup[WatchedRollouts]) -> int:
    (count,) = await worker.each(lambda w, _: w(WatchedRollouts.unfinished), within_s=60, what="a count")
    return count


def long_sampling(seed: str) -> Sampling:
    """Sampling at a temperature at which hardly any response ends by itself."""
    return Sampling(samples=4, temperature=2.0, top_p=1.0, max_response_tokens=64, seed=seed)


def test_responses_under_way_go_on_with_new_weights(
    worker: ActorGroup[WatchedRollouts], task: Task, tmp_path: Path
) -> None:
    """Each token carries the version that sampled it, and its log-probability is that version's of the whole prefix:
    keys and values of the old weights are not used any more."""
    new = moved_model()
    new.save_pretrained(tmp_path)
    folders = {-1: MODEL_DIR, 0: tmp_path}

    async def publish_while_sampling() -> list[list]:
        sampling = asyncio.ensure_future(
            RolloutGroup(FixedPool(worker, CONFIG), CONFIG).sample(task.test[:6], long_sampling("keep"))
        )
        while not await unfinished(worker):
            if sampling.done():
                return sampling.result()
        bucket_refs = posted(0, new.named_parameters())
        await worker.each(lambda w, _: w(RolloutWorker.receive, 0, bucket_refs, CANARY), within_s=60, what="an ack")
        assert not sampling.done()
        return await sampling

    rollouts = [item for group in asyncio.run(publish_while_sampling()) for item in group]
    mixed = [item for item in rollouts if len(set(item.version_T.tolist())) == 2]
    assert len(mixed) > 12, "most were under way"
    pairs = [(item.prompt.tokens, item.tokens_T) for item in rollouts]
    by_version = {version: logits_of(folder, pairs) for version, folder in folders.items()}
    for i, item in enumerate(rollouts):
        assert sorted(item.version_T) == item.version_T.tolist(), "the old ones first"
        for version, logits in by_version.items():
            expected_T = logp_of(logits[i] / 2.0, item)
            own = item.version_T == version
            np.testing.assert_allclose(item.logp_T[own], expected_T[own], atol=5e-5)
        assert item.support_TK is not None
        assert item.support_TK.shape == (len(item.tokens_T), TOP_K)
        newest = by_version[0][i].topk(TOP_K).values.sort(dim=-1).values
        found = by_version[0][i].gather(-1, torch.from_numpy(item.support_TK.copy()).long()).sort(dim=-1).values
        own = torch.from_numpy(item.version_T == 0)
        torch.testing.assert_close(found[own], newest[own], atol=1e-4, rtol=1e-4)


def test_abandoned_requests_are_dropped(worker: ActorGroup[WatchedRollouts], task: Task) -> None:
    """The caller takes one group and closes the stream: the engine aborts the rest and has its capacity again."""
    rollouts = RolloutGroup(FixedPool(worker, CONFIG), CONFIG)

    async def take_one() -> tuple[int, int]:
        stream = rollouts.stream(task.test[:8], long_sampling("dropped"))
        async for _ in stream:
            break
        before = await unfinished(worker)
        await stream.aclose()  # type: ignore[attr-defined]
        for _ in range(100):
            if not (left := await unfinished(worker)):
                break
            await asyncio.sleep(0.02)
        return before, left

    before, left = asyncio.run(take_one())
    assert before > 0
    assert left == 0
    assert rollouts.metrics()["rollout/worker_0_tokens_per_s"] > 0
    assert len(asyncio.run(rollouts.sample(task.test[:2], long_sampling("after")))) == 2


def test_requests_without_seeds_draw_from_the_engine(spares: Spares, task: Task) -> None:
    """Two calls sample differently, with the engine's own log-probabilities; evaluations keep their seeds. The engine
    takes an option of vLLM."""
    config = demo("rollout.request_seeds=false", "rollout.engine={block_size: 64}")
    renew(spares.rollout, config)
    rollouts = RolloutGroup(FixedPool(spares.rollout, config), config)
    sampled = {}
    for name, sampling in (("step", train_sampling(config, 0)), ("evaluation", evaluation_sampling(config))):
        sampled[name] = [
            [item for group in asyncio.run(rollouts.sample(task.test[:4], sampling)) for item in group]
            for _ in range(2)
        ]
    tokens = {name: [[item.tokens_T.tolist() for item in one] for one in calls] for name, calls in sampled.items()}
    assert tokens["step"][0] != tokens["step"][1]
    assert tokens["evaluation"][0] == tokens["evaluation"][1]
    items = sampled["step"][0]
    logits = logits_of(MODEL_DIR, [(item.prompt.tokens, item.tokens_T) for item in items])
    for item, logits_TV in zip(items, logits, strict=True):
        np.testing.assert_allclose(item.logp_T, logp_of(logits_TV, item), atol=5e-5)
    (block_size,) = asyncio.run(
        spares.rollout.each(lambda worker, _: worker(WatchedRollouts.block_size), within_s=60, what="a size")
    )
    assert block_size == 64


def receive(version: int, bucket_refs: Any, worker: Any, _: int) -> Any:
    return worker(RolloutWorker.receive, version, bucket_refs, CANARY)


@pytest.mark.long
def test_a_compiled_engine_takes_published_weights(spares: Spares) -> None:
    """Compiled code must not hold the weights of its first forward."""
    config = demo("rollout.compile=true")
    renew(spares.rollout, config)
    for version, model in enumerate((load_causal_lm(MODEL_DIR, Precision.float32), moved_model())):
        call = partial(receive, version, posted(version, model.named_parameters()))
        (ack,) = asyncio.run(spares.rollout.each(call, within_s=120, what="an ack"))
        expected_T = canary_logp(ResponseModel(model.eval()), CANARY, torch.device("cpu"))
        np.testing.assert_allclose(ack.canary_logp_T, expected_T, atol=5e-5)
