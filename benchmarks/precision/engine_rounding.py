"""Differences between rollout engine and learner in a token's log-probability, both in the same precision."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.precision.teacher_rounding import CPU, student_of
from demopsd_dist.config import Config, Precision
from demopsd_dist.data.records import Prompt, Rollout, Tokens
from demopsd_dist.training.step_prompts import train_sampling
from workers.actor_handle import Handle, Ref
from workers.actors import RolloutActors
from workers.forward import PaddedBatch, ResponseModel, layers_of
from workers.learner.canary_forward import canary_logp
from workers.rollout.worker import RolloutWorker
from workers.weights.canary import CANARY_TOKENS, LogpT

PERCENTS = (50, 90, 95, 99)
ZEROED = "self_attn.q_proj.weight"


def engine_differences(
    config: Config, folder: Path, prompts: Sequence[Prompt], canaries: int, vocabulary: int
) -> dict[str, dict[str, float]]:
    """Quantiles of the differences on random prompts and on sampled tokens, and on random prompts with wrong weights:
    a learner one of whose projections is zero.

    Args:
        config: one rollout worker; a cluster is joined already.
        canaries: number of random prompts of the canary's length.
        vocabulary: number of token ids of the model.
    """
    rng = np.random.default_rng(0)
    random = [rng.integers(0, vocabulary, CANARY_TOKENS).astype(np.int32) for _ in range(canaries)]
    engine_logp, rollouts = asyncio.run(_by_engine(config, folder, prompts, random))
    student = student_of(folder, config.model.precision)
    figures = {"random prompts": _on_prompts(student, random, engine_logp)}
    sampled_N = np.concatenate([np.abs(_logp(student, one, config) - one.logp_T) for one in rollouts])
    figures["sampled tokens"] = quantiles(sampled_N)
    layers = layers_of(student)
    with torch.no_grad():
        layers[len(layers) // 2].get_parameter(ZEROED).zero_()
    figures[f"random prompts, {ZEROED} of a layer zero"] = _on_prompts(student, random, engine_logp)
    return figures


def _on_prompts(
    student: ResponseModel, prompts: Sequence[Tokens], engine_logp: Sequence[NDArray[np.float32]]
) -> dict[str, float]:
    """Quantiles over all tokens, and the smallest and largest median of a prompt."""
    by_prompt = [
        np.abs(canary_logp(student, tokens, CPU) - logp) for tokens, logp in zip(prompts, engine_logp, strict=True)
    ]
    medians = [float(np.median(one)) for one in by_prompt]
    return quantiles(np.concatenate(by_prompt)) | {"median from": min(medians), "median to": max(medians)}


async def _by_engine(
    config: Config, folder: Path, prompts: Sequence[Prompt], random: Sequence[Tokens]
) -> tuple[list[NDArray[np.float32]], list[Rollout]]:
    """Log-probabilities of the random prompts, and responses to the others, by one engine."""
    actors = RolloutActors(config, folder)
    try:
        rollouts = await actors.start()
        groups = await rollouts.sample(prompts, train_sampling(config, 0))
        engine = actors.group
        logp = []
        for tokens in random:
            call = partial(_load_folder, folder.resolve(), tokens)
            logp.append(await engine.one(engine.ranks[0], call, what="a random prompt"))
    finally:
        actors.stop()
    return logp, [rollout for group in groups for rollout in group]


def _load_folder(folder: Path, tokens: Tokens, worker: Handle[RolloutWorker]) -> Ref[LogpT]:
    return worker(RolloutWorker.load_folder, folder, tokens)


@torch.no_grad()
def _logp(student: ResponseModel, rollout: Rollout, config: Config) -> NDArray[np.float32]:
    """Log-probabilities of a response by the learners' forward, at the temperature of the rollouts."""
    batch = PaddedBatch([[(rollout.prompt.tokens, rollout.tokens_T)]], CPU)
    logits_NV = student(batch, lambda head, hidden_NH: head.logits(hidden_NH)).float() / config.rollout.temperature
    logp_N: NDArray[np.float32] = logits_NV.log_softmax(-1).gather(-1, batch.response_N[:, None])[:, 0].numpy()
    return logp_N


def quantiles(values_N: NDArray[np.float32]) -> dict[str, float]:
    """Quantiles and the largest of differences, nats."""
    figures = {f"p{percent}": float(np.percentile(values_N, percent)) for percent in PERCENTS}
    return {"tokens": float(len(values_N)), **figures, "max": float(values_N.max())}


def precisions() -> list[Precision]:
    """Precisions to measure, the exact one first."""
    return [Precision.float32, Precision.bfloat16]
