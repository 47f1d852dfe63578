"""Rollout worker: a vLLM engine in an actor's process, from prompts to rollouts with log-probabilities."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from demopsd_dist.config import LARGEST, Config, OnPublish, longest_sequence_tokens
from demopsd_dist.data.records import Prompt, Rollout, Tokens
from demopsd_dist.methods import SupportKind, resolve_method
from demopsd_dist.models.text_config import layers_with_a_state, text_config_of
from demopsd_dist.run_record.profiling.operations import ProcessOperations
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import WeightSyncError, WorkerError
from workers.actor_handle import Ref
from workers.cpu_environment import cpu_environment
from workers.rollout.detokenizer import Detokenizer
from workers.rollout.start_errors import engine_start_error
from workers.rollout.weight_loading import EngineLoading, left_to_processes
from workers.weights.buckets import Ack, Bucket, BucketRef
from workers.weights.canary import LogpT
from workers.weights.process_group import GroupMeeting, GroupMember
from workers.weights.receiver import Receiver

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.logprobs import Logprob
    from vllm.outputs import WeightVersionSpan


CPU_BLOCK_TOKENS = 32  # of keys and values. Whole blocks of a prompt are shared; vLLM's own of 128 hold most prompts


def environment(config: Config) -> dict[str, str]:
    """Environment variables that vLLM reads at import. The engine runs in the worker's process; with `tensor_parallel`
    its ranks are child processes that end with it."""
    common = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if config.rollout.gpus_per_worker:
        return common
    on_cpu = {
        "VLLM_CPU_KVCACHE_SPACE": f"{config.rollout.kv_cache_gib:g}",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return common | cpu_environment(config.rollout.threads) | on_cpu


class RolloutWorker(Receiver):
    """Actor with a vLLM engine. State: the engine's unfinished requests, and the version of its weights.

    An asyncio actor. One coroutine steps the engine while it has requests; between two steps requests are added or
    dropped and weights received, so no lock is needed.
    """

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        super().__init__(f"rollout {rank}")
        self.rank = rank
        self._config = config
        self._folder = model_folder
        method = resolve_method(config)
        # Most likely tokens that are reported at each position, beside the sampled one.
        self._top_k = (method.top_k or 0) if method.forwards.support is SupportKind.engine else 0
        self.version = -1
        self._request_count = 0
        self._progress = 0
        self._pending: dict[str, asyncio.Future[RequestOutput]] = {}  # by request id
        self._stepping: asyncio.Task[None] | None = None
        # set while new prompts are accepted: not while a publish waits for running requests, nor during sleep
        self._accepting = asyncio.Event()
        self._accepting.set()
        self._asleep = False

    async def import_libraries(self) -> None:
        """Import the libraries of an engine, which takes longer than starting one for a small model."""
        for name in ("vllm.entrypoints.llm", "workers.rollout.vllm_weights"):
            import_module(name)

    async def start(self, *, random_weights: bool = False) -> None:
        """Load the engine. A call of its own, so that a failure comes back as this worker's error.

        Args:
            random_weights: start with random weights instead of the model folder's, so that a tensor missing from the
                first publish gives wrong log-probabilities.

        Raises:
            EngineStartError: with vLLM's own last line.
        """
        try:
            self._start_engine(random_weights)
        except Exception as error:
            raise engine_start_error(self.rank, error) from None

    def _start_engine(self, random_weights: bool) -> None:
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from workers.rollout.vllm_weights import BACKEND, WORKER_EXTENSION

        settings = self._config.rollout
        shares_prompts = not layers_with_a_state(text_config_of(self._folder))
        on_cpu = shares_prompts and not settings.gpus_per_worker
        blocks: dict[str, Any] = {"block_size": CPU_BLOCK_TOKENS} if on_cpu else {}
        engine = LLM(
            model=str(self._folder),
            load_format="dummy" if random_weights else "safetensors",
            dtype=self._config.model.precision.value,
            max_model_len=longest_sequence_tokens(self._config),
            max_num_batched_tokens=settings.max_batch_tokens,
            # In chunked prefill a seeded request draws a random number too many; vLLM rewinds the generator, which only
            # CUDA can.
            enable_chunked_prefill=bool(settings.gpus_per_worker),
            max_num_seqs=settings.max_batch_sequences,
            gpu_memory_utilization=settings.gpu_memory_fraction,
            enforce_eager=not (settings.gpus_per_worker if settings.compile is None else settings.compile),
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
            worker_extension_cls=WORKER_EXTENSION if settings.tensor_parallel > 1 else "",
            # Cached keys and values do not bring back the state of other layers, and on CPU vLLM refuses to try.
            enable_prefix_caching=shares_prompts,
            # CUDA only: a CPU engine pauses without it, and keeps its memory
            enable_sleep_mode=settings.sleep and bool(settings.gpus_per_worker),
            max_logprobs=max(self._top_k, 1),
            logprobs_mode="processed_logprobs",  # at the sampling temperature, as the policy sampled
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            generation_config="vllm",  # the folder's own sampling defaults would silently override ours
            seed=self._engine_seed,
            trust_remote_code=False,
            disable_log_stats=True,
            **(blocks | settings.engine),
        )
        self._engine = engine.llm_engine
        self._loading = EngineLoading(
            self._engine, f"rollout {self.rank}", settings.tensor_parallel, lambda: self.plan.sizes
        )
        self._detokenizer = Detokenizer(engine.get_tokenizer())
        self._engine.collective_rpc(
            "init_weight_transfer_engine", kwargs={"init_info": {"receiver": f"rollout {self.rank}"}}
        )
        self._set_version(self.version)

    @property
    def _engine_seed(self) -> int:
        """Seed of the engine's own generator, which requests without a seed draw from: another for each engine, and for
        one that is started again."""
        if self._config.rollout.request_seeds:
            return self._config.seed
        return _request_seed(self._config.seed, self.rank, time.time_ns()) & LARGEST

    async def progress(self) -> int:
        """Count of engine steps and received publishes so far; it grows while the worker makes progress, or waits for a
        publish, which has a limit of its own."""
        if not self._accepting.is_set():
            self._progress += 1
        return self._progress

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """Sample `sampling.samples` rollouts for each prompt. Each request has its own seed, unless `sampling` has
        none, so its tokens depend neither on the worker nor on other requests nor on their order. Cancelling the call
        drops the requests.

        In a deterministic run the rounding of the log-probabilities does not depend on them either: the engine then
        runs these requests alone, with an empty prefix cache.

        Raises:
            WorkerError: the run is deterministic, and the engine still runs other requests.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        await self._accepting.wait()
        if self._config.deterministic and not self._engine.reset_prefix_cache():
            raise WorkerError(
                f"rollout {self.rank} still runs other requests; with deterministic=true it must sample one call at a "
                "time."
            )
        requests = [
            self._add(
                prompt.tokens.tolist(),
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_response_tokens,
                    logprobs=self._top_k,  # 0: only the sampled token's
                    seed=None if sampling.seed is None else _request_seed(sampling.seed, prompt.id, sample),
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    detokenize=False,  # once, when it is finished
                ),
            )
            for prompt in prompts
            for sample in range(sampling.samples)
        ]
        outputs = iter(await self._outputs(requests))
        return [
            [self._rollout(prompt, sample, next(outputs)) for sample in range(sampling.samples)] for prompt in prompts
        ]

    def _add(self, tokens: list[int], params: SamplingParams) -> str:
        """Add a request to the engine and return its id."""
        from vllm.inputs import TokensPrompt

        self._request_count += 1
        request = str(self._request_count)
        self._engine.add_request(request, TokensPrompt(prompt_token_ids=tokens), params)
        self._pending[request] = asyncio.get_running_loop().create_future()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.ensure_future(self._step_while_busy())
        return request

    async def _outputs(self, requests: Sequence[str]) -> list[RequestOutput]:
        """Wait for the outputs of these requests; abort those that have not finished when the wait ends."""
        try:
            return await asyncio.gather(*(self._pending[request] for request in requests))
        finally:
            outputs = {request: self._pending.pop(request) for request in requests}
            self._engine.abort_request([r for r, output in outputs.items() if not output.done() or output.cancelled()])

    async def _step_while_busy(self) -> None:
        try:
            with self.spans.span("sample"):
                await self._step_until_finished()
        except Exception as error:
            for pending in self._pending.values():
                if not pending.done():
                    pending.set_exception(error)

    async def _step_until_finished(self) -> None:
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            self._progress += 1
            for output in outputs:
                pending = self._pending.get(output.request_id)
                if output.finished and pending is not None and not pending.done():
                    pending.set_result(output)
            await asyncio.sleep(0)  # let other calls of this actor run

    def _rollout(self, prompt: Prompt, sample: int, output: RequestOutput) -> Rollout:
        completion = output.outputs[0]
        tokens_T = np.asarray(completion.token_ids, dtype=np.int32)
        body = completion.token_ids if completion.finish_reason == "length" else completion.token_ids[:-1]
        logp = [step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)]
        return Rollout(
            prompt=prompt,
            sample=sample,
            tokens_T=tokens_T,
            logp_T=np.asarray(logp, dtype=np.float32),
            text=self._detokenizer.text(output.prompt_token_ids or [], body),
            truncated=completion.finish_reason == "length",
            version_T=token_versions(completion.weight_versions, len(tokens_T)),
            worker=self.rank,
            support_TK=top_k_ids(completion.logprobs, self._top_k) if self._top_k else None,
        )

    async def operations(self) -> ProcessOperations | None:  # type: ignore[override]
        """End the recording of operations, and return them. Other calls are answered while they are added up."""
        profiler = self._stopped_profiler()
        return None if profiler is None else await asyncio.to_thread(profiler.result)

    async def peak_flops(self) -> float:
        """Measure the peak rate of matrix products of the engine's processes, operations/s."""
        import torch

        from workers.matrix_peak import matrix_peak_flops

        settings = self._config.rollout
        device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        return settings.tensor_parallel * matrix_peak_flops(device, self._config.model.precision)

    async def sleep(self) -> None:
        """Free the memory of weights and cache until the next publish; unfinished requests are dropped."""
        self._accepting.clear()
        self._engine.abort_request(list(self._pending))
        for pending in self._pending.values():
            pending.cancel()
        with self.spans.span("sleep"):
            self._engine.sleep(level=2)
        self._asleep = True

    async def mark_version(self, version: int) -> None:
        """Set the version of unchanged weights, after a step without an optimizer update."""
        self._set_version(version)

    async def pause(self) -> None:
        """Wait until no request is running if a publish waits for that, and accept none until the publish is
        received."""
        if self._config.rollout.on_publish is OnPublish.wait and not self._asleep:
            self._accepting.clear()
            if self._stepping is not None:
                await self._stepping

    async def receive(self, version: int, bucket_refs: Sequence[Ref[BucketRef]], canary: Tokens) -> Ack:
        """Load published weights. The prefix cache holds keys and values of the old weights, so it is dropped.

        The publish waits for running requests, or (`rollout.on_publish=keep`) they continue afterwards with the new
        weights: the keys and values of their tokens so far are then computed again. The engine samples nothing between
        the first bucket's arrival and the last's, so no token comes from partly loaded weights.

        Args:
            canary: fixed prompt whose log-probabilities, returned in the ack, show that the new weights are in use.

        Raises:
            WeightSyncError: a bucket arrived late, damaged or incomplete, a tensor is missing, or the cache was not
                dropped.
            BrokenGroupError: the process group that brings the buckets is broken.
        """
        try:
            await self.pause()
        finally:
            if not self._asleep:
                self._accepting.set()
        with self.spans.span("receive"):
            if self._asleep:
                self._engine.wake_up(["weights"])
            self._engine.collective_rpc("start_weight_update")
            self._loading.load(self.arriving_buckets(version, bucket_refs), self.checkpoint_views)
            self._engine.collective_rpc("finish_weight_update")
            if self._asleep:
                self._engine.wake_up(["kv_cache"])
                self._asleep = False
                self._accepting.set()
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise WeightSyncError(
                f"rollout {self.rank} could not drop its prefix cache, which holds keys and values of the old weights."
            )
        self._progress += 1
        self._set_version(version)
        return replace(self.ack(version), canary_logp_T=await self._prompt_logp(canary))

    async def load_folder(self, folder: Path, canary: Tokens) -> LogpT:
        """Load the weights of a model folder in place of the published ones, while the engine has no requests.

        Returns:
            The log-probability of each token of the canary after the first.

        Raises:
            WeightSyncError: a tensor of the model is not in the folder, or the cache was not dropped.
        """
        with self.spans.span("receive"):
            self._engine.collective_rpc("start_weight_update")
            self._engine.collective_rpc("update_weights", kwargs={"update_info": {"folder": folder}})
            self._engine.collective_rpc("finish_weight_update")
        if not self._engine.reset_prefix_cache():
            raise WeightSyncError(f"rollout {self.rank} still runs requests, and cannot load {folder}.")
        return await self._prompt_logp(canary)

    def _join(self, meeting: GroupMeeting, rank: int, address: str) -> GroupMember | None:
        if self._config.rollout.tensor_parallel == 1:
            return super()._join(meeting, rank, address)
        self._loading.join_group(meeting, rank, address)
        return None

    def _broadcast_bucket(self, bucket_ref: BucketRef) -> Bucket:
        if self._config.rollout.tensor_parallel == 1:
            return super()._broadcast_bucket(bucket_ref)
        return left_to_processes(bucket_ref)

    async def _prompt_logp(self, tokens_T: Tokens) -> LogpT:
        """The engine's log-probability of each token of a prompt after the first, at temperature 1."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        (output,) = await self._outputs([self._add(tokens_T.tolist(), params)])
        steps = zip(output.prompt_logprobs[1:], tokens_T[1:].tolist(), strict=True)
        return np.asarray([step[token].logprob for step, token in steps], dtype=np.float32)

    def _set_version(self, version: int) -> None:
        """Set the version of the weights, which vLLM reports with each sampled token."""
        self.version = version
        self._engine.set_weight_version(str(version))


def token_versions(spans: Sequence[WeightVersionSpan] | None, count: int) -> Tokens:
    """Weight version of each of `count` tokens; -1 where vLLM reports none."""
    version_T = np.full(count, -1, dtype=np.int32)
    for span in spans or ():
        version_T[span.start : span.end] = int(span.version)
    return version_T


def top_k_ids(steps: Sequence[dict[int, Logprob]], top_k: int) -> Tokens:
    """Ids (T, K) of the K most likely tokens at each step, most likely first.

    The sampled token, which the engine adds to its list, is cut off unless it is among them.
    """
    return np.asarray([sorted(step, key=lambda token: step[token].rank)[:top_k] for step in steps], dtype=np.int32)


def _request_seed(*parts: object) -> int:
    """A 63-bit seed from a digest of the parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
