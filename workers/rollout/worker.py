"""RolloutWorker: a vLLM engine inside the actor's own process. Prompts in; rollouts with log-probabilities out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from demopsd_dist.config import Config, OnPublish, longest_sequence_tokens
from demopsd_dist.data.records import Prompt, Rollout, Tokens
from demopsd_dist.methods import SupportKind, resolve_method
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import WeightSyncError, WorkerError
from workers.weights.buckets import Ack, Bucket, BucketRef
from workers.weights.canary import LogpT
from workers.weights.transports import Receiver, SharedMemoryOutbox

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.logprobs import Logprob
    from vllm.outputs import WeightVersionSpan


def environment(config: Config) -> dict[str, str]:
    """Variables that vLLM reads at import. The engine is in the worker's process, and with `tensor_parallel` processes
    that end with it compute for it."""
    common = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if config.rollout.gpus_per_worker:
        return common
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": f"{config.rollout.kv_cache_gib:g}",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.rollout.threads),
        "CUDA_VISIBLE_DEVICES": "",
    }


class RolloutWorker(Receiver):
    """State: the engine with its unfinished requests, and the version of the weights in it.

    An asyncio actor. One coroutine steps the engine while there is something to do; between two steps new prompts are
    taken, others dropped, and weights received, so that nothing here needs a lock.
    """

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        super().__init__(f"rollout {rank}")
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self.version = -1
        self._asked = self._done = 0
        self._top_k = 0  # most likely tokens to tell of each step, beside the one sampled
        self._answers: dict[str, asyncio.Future[RequestOutput]] = {}
        self._stepping: asyncio.Task[None] | None = None
        self._copies: SharedMemoryOutbox | None = None  # of weights, for the engine's processes
        self._open = asyncio.Event()  # for new prompts; closed while a publish waits for those under way
        self._open.set()
        self._asleep = False

    async def start(self, *, blank: bool = False) -> None:
        """Load the engine. A call of its own, so that a failure comes back as this worker's error.

        Args:
            blank: with noise for weights, where a publish is to bring them: what it leaves out cannot pass unnoticed.
        """
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from workers.rollout.vllm_weights import BACKEND, SEVERAL

        settings = self._config.rollout
        made = resolve_method(self._config)
        if made.forwards.support is SupportKind.engine:
            self._top_k = made.top_k or 0
        engine = LLM(
            model=str(self._folder),
            load_format="dummy" if blank else "safetensors",
            dtype=self._config.model.precision.value,
            max_model_len=longest_sequence_tokens(self._config),
            max_num_batched_tokens=settings.max_batch_tokens,
            # A prompt cut in two draws one random number too many; vLLM takes it back on CUDA and fails on CPU.
            enable_chunked_prefill=bool(settings.gpus_per_worker),
            max_num_seqs=settings.max_batch_sequences,
            gpu_memory_utilization=settings.gpu_memory_fraction,
            enforce_eager=not settings.gpus_per_worker,
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
            worker_extension_cls=SEVERAL if settings.tensor_parallel > 1 else "",
            enable_prefix_caching=True,
            enable_sleep_mode=settings.sleep and bool(settings.gpus_per_worker),  # a CPU engine can sleep without
            max_logprobs=max(self._top_k, 1),
            logprobs_mode="processed_logprobs",  # at the sampling temperature: those of the policy that sampled
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            generation_config="vllm",  # the folder's own sampling defaults would override ours in silence
            seed=self._config.seed,
            trust_remote_code=False,
            disable_log_stats=True,
        )
        self._engine = engine.llm_engine
        self._engine.collective_rpc(
            "init_weight_transfer_engine", kwargs={"init_info": {"receiver": f"rollout {self.rank}"}}
        )
        self._stamp(self.version)

    async def pulse(self) -> int:
        """What has been done so far, as a number that grows: steps of the engine, and weights received."""
        return self._done

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """`sampling.samples` rollouts for each prompt. Each request has its own seed, so its tokens do not depend on
        the worker, the company or the order. Cancelling the call drops them.

        Where the run is to be the same bit for bit, neither does the rounding of their log-probabilities: the engine
        has these requests alone, and nothing of earlier ones in its cache.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        await self._open.wait()
        if self._config.deterministic and not self._engine.reset_prefix_cache():
            raise WorkerError(f"rollout {self.rank} has other requests under way, and cannot be deterministic.")
        requests = [
            self._add(
                prompt.tokens.tolist(),
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_response_tokens,
                    logprobs=self._top_k,  # 0: the sampled token's alone
                    seed=_request_seed(sampling.seed, prompt.id, sample),
                    output_kind=RequestOutputKind.FINAL_ONLY,
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
        """Hand a request to the engine; its id."""
        from vllm.inputs import TokensPrompt

        self._asked += 1
        request = str(self._asked)
        self._engine.add_request(request, TokensPrompt(prompt_token_ids=tokens), params)
        self._answers[request] = asyncio.get_running_loop().create_future()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.ensure_future(self._step_while_busy())
        return request

    async def _outputs(self, requests: Sequence[str]) -> list[RequestOutput]:
        try:
            return await asyncio.gather(*(self._answers[request] for request in requests))
        finally:
            answers = {request: self._answers.pop(request) for request in requests}
            self._engine.abort_request([r for r, answer in answers.items() if not answer.done() or answer.cancelled()])

    async def _step_while_busy(self) -> None:
        try:
            with self.spans.span("sample"):
                await self._step_to_the_end()
        except Exception as error:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)

    async def _step_to_the_end(self) -> None:
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            self._done += 1
            for output in outputs:
                answer = self._answers.get(output.request_id)
                if output.finished and answer is not None and not answer.done():
                    answer.set_result(output)
            await asyncio.sleep(0)  # whoever else has something to do here does it now

    def _rollout(self, prompt: Prompt, sample: int, output: RequestOutput) -> Rollout:
        completion = output.outputs[0]
        tokens_T = np.asarray(completion.token_ids, dtype=np.int32)
        logp = [step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)]
        return Rollout(
            prompt=prompt,
            sample=sample,
            tokens_T=tokens_T,
            logp_T=np.asarray(logp, dtype=np.float32),
            text=completion.text,
            truncated=completion.finish_reason == "length",
            version_T=versions(completion.weight_versions, len(tokens_T)),
            worker=self.rank,
            support_TK=most_likely(completion.logprobs, self._top_k) if self._top_k else None,
        )

    async def sleep(self) -> None:
        """Drop weights and cache, and whatever is still under way, and give their memory back, until weights come."""
        self._open.clear()
        self._engine.abort_request(list(self._answers))
        for answer in self._answers.values():
            answer.cancel()
        with self.spans.span("sleep"):
            self._engine.sleep(level=2)
        self._asleep = True

    async def mark_version(self, version: int) -> None:
        """The weights here are also those of `version`: its step learned nothing."""
        self._stamp(version)

    async def receive(self, version: int, bucket_refs: Sequence[ray.ObjectRef], probe: Tokens) -> Ack:
        """Load published weights. The prefix cache holds keys and values of the old ones, so it is dropped.

        Responses under way are waited for, or (`rollout.on_publish=keep`) go on afterwards on the new weights: the
        keys and values of what they have so far are then computed anew. The engine makes no step on half of the
        weights, and does nothing else from the first bucket's arrival to the last's.
        """
        waits = self._config.rollout.on_publish is OnPublish.wait
        if waits and self._stepping is not None and not self._asleep:
            self._open.clear()
            try:
                await self._stepping
            finally:
                self._open.set()
        with self.spans.span("receive"):
            if self._asleep:
                self._engine.wake_up(["weights"])
            self._engine.collective_rpc("start_weight_update")
            arriving = self.arriving(version, bucket_refs)
            if self._config.rollout.tensor_parallel == 1:
                self._update(arriving, complete=True)
            else:
                self._tell_processes(arriving)
            self._engine.collective_rpc("finish_weight_update")
            if self._asleep:
                self._engine.wake_up(["kv_cache"])
                self._asleep = False
                self._open.set()
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise WeightSyncError(f"rollout {self.rank} could not drop its prefix cache, which holds the old weights'.")
        self._done += 1
        self._stamp(version)
        return replace(self.ack(version), probe_logp_T=await self._probe_logp(probe))

    def _update(self, buckets: Iterable[Bucket | BucketRef], complete: bool) -> None:
        update = {"buckets": buckets, "complete": complete}
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update})

    def _tell_processes(self, arriving: Iterable[Bucket]) -> None:
        """
        Raises:
            WeightSyncError: that of a bucket; or a process has not loaded what it was told of.
        """
        try:
            for bucket in arriving:
                self._update([self._shared(bucket)], complete=False)
            self._update([], complete=True)
        except BaseException as error:
            with suppress(Exception):
                self._engine.collective_rpc("finish_weight_update")  # else the next update could not begin
            if isinstance(error, RuntimeError):  # what vLLM makes of any error of a process
                raise WeightSyncError(f"rollout {self.rank} could not load weights: {error}") from None
            raise

    def _shared(self, bucket: Bucket) -> BucketRef:
        """Where in shared memory all processes find it: where it came, or a copy of what came through the object
        store."""
        if bucket.place is not None:
            return BucketRef(bucket.label, bucket.place)
        self._copies = self._copies or SharedMemoryOutbox(self.plan.sizes)
        self._copies.room(bucket.label.index)[: len(bucket.data)] = bucket.data
        return self._copies.send(bucket)

    async def _probe_logp(self, tokens_T: Tokens) -> LogpT:
        """The engine's log-probability of each token of a prompt after the first, at temperature 1."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        (output,) = await self._outputs([self._add(tokens_T.tolist(), params)])
        steps = zip(output.prompt_logprobs[1:], tokens_T[1:].tolist(), strict=True)
        return np.asarray([step[token].logprob for step, token in steps], dtype=np.float32)

    def _stamp(self, version: int) -> None:
        """vLLM notes with each token which weights it was sampled from."""
        self.version = version
        self._engine.set_weight_version(str(version))


def versions(spans: Sequence[WeightVersionSpan] | None, count: int) -> Tokens:
    """The version of each of `count` tokens."""
    version_T = np.full(count, -1, dtype=np.int32)
    for span in spans or ():
        version_T[span.start : span.end] = int(span.version)
    return version_T


def most_likely(steps: Sequence[dict[int, Logprob]], top_k: int) -> Tokens:
    """(T, K) ids by rank, from what the engine says of each step: its most likely tokens and the one sampled."""
    return np.asarray([sorted(step, key=lambda token: step[token].rank)[:top_k] for step in steps], dtype=np.int32)


def _request_seed(*parts: object) -> int:
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
