"""Senders and receivers of `benchmarks.weights`: actors that do less than those of a run, or time more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demopsd_dist.config import Config, Transport, logp_bounds
from workers.actor_group import ActorGroup
from workers.forward import ResponseModel, load_causal_lm
from workers.learner.worker import LearnerWorker
from workers.rollout.pool import FixedPool
from workers.rollout.worker import RolloutWorker
from workers.weights.buckets import Ack
from workers.weights.canary import CanaryHistory
from workers.weights.publisher import WeightPublisher
from workers.weights.receiver import Receiver
from workers.weights.tensor_groups import group_by_bytes


class BucketSender(LearnerWorker):
    """A learner without DeepSpeed, and so without an optimizer's memory. It packs and sends like every learner."""

    def prepare(self) -> None:
        """Do nothing: `start` loads the model."""

    def start(self, meeting_point: tuple[str, int]) -> None:
        """Load the model on one thread."""
        self._device = torch.device("cpu")
        torch.set_num_threads(1)
        model = ResponseModel(load_causal_lm(self._folder, self._config.model.precision).eval())
        self._engine = ModelWithoutEngine(model)
        self._adapters = {}
        self._checkpoint_views = {}
        named = list(model.model.named_parameters())
        self._buckets = list(group_by_bytes(named, self._config.weights.bucket_mib << 20))


class ModelWithoutEngine:
    """A model behind the part of DeepSpeed's engine that a publish uses."""

    def __init__(self, module: ResponseModel) -> None:
        self.module = module

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)


class SilentBucketSender(BucketSender):
    """A sender that skips the canary's forward."""

    def canary_logp(self, tokens: Any) -> Any:
        """Zeros instead of log-probabilities."""
        return np.zeros(len(tokens) - 1, np.float32)


class BucketReader(Receiver):
    """A receiver that checks the digest of every bucket and does not load it."""

    def __init__(self, rank: int, config: Config, folder: Path) -> None:
        super().__init__(f"reader {rank}")

    def start(self, random_weights: bool) -> None:
        """Do nothing: there is no engine."""

    def pause(self) -> None:
        """Do nothing: there are no requests."""

    def receive(self, version: int, bucket_refs: Any, canary: Any) -> Ack:
        """Check all buckets of a publish."""
        for _ in self.arriving_buckets(version, bucket_refs):
            pass
        canary_logp_T = np.zeros(len(canary) - 1, np.float32)
        return Ack(version, canary_logp_T, self.waited_s, self.verified_s, time.perf_counter() - self.began_s)

    def repacking_s(self) -> float:
        """Zero: nothing is loaded."""
        return 0.0


class LoadingEngine(RolloutWorker):
    """A rollout worker that measures how long vLLM takes to re-pack weights for its kernels."""

    async def start(self, *, random_weights: bool = False) -> None:
        """Start vLLM with timers around its re-packing."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        self._repacking_s = 0.0
        for method in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
            method.process_weights_after_loading = self._timed(method.process_weights_after_loading)
        await super().start(random_weights=random_weights)

    def _timed(self, work: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            started = time.perf_counter()
            work(*arguments)
            self._repacking_s += time.perf_counter() - started

        return timed

    async def repacking_s(self) -> float:
        """Seconds of re-packing since the last call."""
        spent_s, self._repacking_s = self._repacking_s, 0.0
        return spent_s


class PartialPublisher(WeightPublisher):
    """A started publisher that publishes to only some of its receivers."""

    def __init__(self, publisher: WeightPublisher, receivers: ActorGroup[Any], config: Config) -> None:
        canaries = CanaryHistory(logp_bounds(config))
        vars(self).update(vars(publisher), _rollouts=FixedPool(receivers, config), _canaries=canaries)

    async def form_group(self) -> float:
        """Form the process group of the sender and these receivers, if weights go through one; seconds that it took."""
        started = time.perf_counter()
        if self.transport is Transport.collective:
            await self._group.form([self._rollouts.group])
        return time.perf_counter() - started
