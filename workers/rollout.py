"""RolloutWorker: a vLLM engine inside the actor's own process. Prompts in; rollouts with log-probabilities out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray

from demopsd_dist.config import Config, longest_sequence_tokens
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.errors import WeightSyncError
from demopsd_dist.roles import Sampling
from workers.weights import take_buckets


def environment(config: Config) -> dict[str, str]:
    """Variables that vLLM reads at import. In-process engine: one process a worker, no child to outlive it."""
    common = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if config.rollout.gpus_per_worker:
        return common
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": f"{config.rollout.kv_cache_gib:g}",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.rollout.threads),
        "CUDA_VISIBLE_DEVICES": "",
    }


class RolloutWorker:
    """State: the engine, and the version of the weights in it."""

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self.version = -1
        self._names: set[str] | None = None  # what a publish must bring: what the first one brought

    def start(self) -> None:
        """Load the engine. A call of its own, so that a failure comes back as this worker's error."""
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from workers.vllm_transfer import BACKEND

        settings = self._config.rollout
        self._engine = LLM(
            model=str(self._folder),
            dtype=self._config.model.precision.value,
            max_model_len=longest_sequence_tokens(self._config),
            max_num_batched_tokens=settings.max_batch_tokens,
            # A prompt cut in two draws one random number too many; vLLM takes it back on CUDA and fails on CPU.
            enable_chunked_prefill=bool(settings.gpus_per_worker),
            max_num_seqs=settings.max_batch_sequences,
            gpu_memory_utilization=settings.gpu_memory_fraction,
            enforce_eager=not settings.gpus_per_worker,
            distributed_executor_backend="uni",
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # at the sampling temperature: those of the policy that sampled
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            generation_config="vllm",  # the folder's own sampling defaults would override ours in silence
            seed=self._config.seed,
            trust_remote_code=False,
            disable_log_stats=True,
        )
        self._engine.collective_rpc(
            "init_weight_transfer_engine", kwargs={"init_info": {"receiver": f"rollout {self.rank}"}}
        )

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """`sampling.samples` rollouts for each prompt. Each request has its own seed, so its tokens do not depend on
        the worker, the batch or the order."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        jobs = [(prompt, sample) for prompt in prompts for sample in range(sampling.samples)]
        outputs = self._engine.generate(
            [TokensPrompt(prompt_token_ids=prompt.tokens.tolist()) for prompt, _ in jobs],
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_response_tokens,
                    logprobs=0,  # the sampled token's alone
                    seed=_request_seed(sampling.seed, prompt.id, sample),
                )
                for prompt, sample in jobs
            ],
            use_tqdm=False,
        )
        rollouts = [
            self._rollout(prompt, sample, output.outputs[0])
            for (prompt, sample), output in zip(jobs, outputs, strict=True)
        ]
        return [rollouts[i : i + sampling.samples] for i in range(0, len(rollouts), sampling.samples)]

    def _rollout(self, prompt: Prompt, sample: int, output) -> Rollout:
        tokens_T = np.asarray(output.token_ids, dtype=np.int32)
        logp = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        return Rollout(
            prompt=prompt,
            sample=sample,
            tokens_T=tokens_T,
            logp_T=np.asarray(logp, dtype=np.float32),
            text=output.text,
            truncated=output.finish_reason == "length",
            weight_version=self.version,
            worker=self.rank,
        )

    def adopt(self, version: int) -> None:
        """The weights here are also those of `version`: its step learned nothing."""
        self.version = version

    def receive(self, version: int, buckets: list[ray.ObjectRef]) -> int:
        """Load published weights. The prefix cache holds keys and values of the old ones, so it is dropped."""
        arrived = take_buckets(buckets, version, f"rollout {self.rank}", self._names)
        self._names = {spec.name for bucket in arrived for spec in bucket.specs}
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": {"buckets": arrived}})
        self._engine.collective_rpc("finish_weight_update")
        if not self._engine.reset_prefix_cache():
            raise WeightSyncError(f"rollout {self.rank} could not drop its prefix cache, which holds the old weights'.")
        self.version = version
        return version


def _request_seed(*parts: object) -> int:
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
