"""The driver's rollout role: prompts to rollout workers, and their checked responses back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np

from demopsd_dist.config import Config
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import LostWorkerError, WorkerError
from workers.rollout.dispatch import Pool, WorkerThroughput
from workers.rollout.worker import RolloutWorker


class RolloutGroup:
    """The rollout workers of a run. Responses depend neither on the worker that samples them nor on failures."""

    def __init__(self, pool: Pool, config: Config) -> None:
        self._pool = pool
        self._config = config
        self._throughput = WorkerThroughput()

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        """Yield each prompt's responses as soon as they are complete, with the prompt's index.

        Raises:
            WorkerError: no request of this stream, nor of another before it in the queue, ended within `limits.call_s`;
                a prompt failed `limits.attempts` times; or no worker is
                left.
        """
        call_s = self._config.limits.call_s
        requests = {
            asyncio.ensure_future(self._sample([prompts[i] for i in indices], sampling)): indices
            for indices in self._requests(len(prompts))
        }
        waiting, released = set(requests), self._pool.queue.released
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=call_s, return_when=asyncio.FIRST_COMPLETED)
                is_idle, released = released == self._pool.queue.released, self._pool.queue.released
                if not done and is_idle:
                    raise WorkerError(
                        f"rollout {self._pool.queue.busy} finished none of {len(waiting)} groups of "
                        f"{sampling.samples} responses within limits.call_s={call_s:g} s."
                    )
                for request in done:
                    for index, group in zip(requests[request], request.result(), strict=True):
                        yield index, group
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """Sample responses to all prompts, in the order of the prompts.

        Raises:
            WorkerError: as for `stream`.
        """
        groups = {index: group async for index, group in self.stream(prompts, sampling)}
        return [groups[index] for index in range(len(prompts))]

    def metrics(self) -> dict[str, float]:
        """Metrics of the workers since the last call."""
        return self._throughput.metrics() | self._pool.metrics()

    def _requests(self, prompts: int) -> list[list[int]]:
        """Indices of the prompts that are requested together: each prompt by itself.

        The sequences that an engine runs at a time decide how its sums are rounded. A run that must be the same bit for
        bit therefore fixes them: one request a worker.
        """
        if not self._config.deterministic:
            return [[i] for i in range(prompts)]
        workers = self._config.rollout.num_workers
        return [indices for first in range(workers) if (indices := list(range(first, prompts, workers)))]

    async def _sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """Responses of one worker to these prompts; if it fails, another worker is tried, `limits.attempts` times in
        total."""
        sequences = len(prompts) * sampling.samples
        capacity = self._config.rollout.max_batch_sequences if self._config.deterministic else sequences
        what = f"{sequences} responses to {prompts[0].id}" + (f" and {len(prompts) - 1} more" if prompts[1:] else "")
        failures: list[str] = []
        for attempt in range(1, self._config.limits.attempts + 1):
            worker = await self._pool.queue.acquire(capacity)
            self._throughput.begin(worker)
            groups: list[list[Rollout]] = []
            try:
                responses = await self._pool.call(
                    worker, lambda actor: actor(RolloutWorker.sample, prompts, sampling), what=what
                )
                validate_rollouts(responses, prompts, sampling, worker)
                groups = [[replace(rollout, attempt=attempt) for rollout in group] for group in responses]
                self._pool.report_success(worker)
                return groups
            except LostWorkerError as error:
                failures.append(str(error))
                self._pool.report_lost_worker(worker, error)
            finally:
                self._throughput.end(worker, [rollout for group in groups for rollout in group])
                self._pool.queue.release(worker, capacity)
        raise WorkerError(
            f"{what} were asked for in vain {len(failures)} times (limits.attempts): " + "  ".join(failures)
        )


def validate_rollouts(
    groups: Sequence[Sequence[Rollout]], prompts: Sequence[Prompt], sampling: Sampling, worker: int
) -> None:
    """Refuse responses that do not answer the prompts.

    Raises:
        LostWorkerError: other prompts or samples, arrays of other lengths, or log-probabilities above 0 or not finite.
            The worker is then replaced.
    """
    requested = [(prompt.id, sample) for prompt in prompts for sample in range(sampling.samples)]
    received = [(rollout.prompt.id, rollout.sample) for group in groups for rollout in group]
    fault = (
        f"was asked for {requested[0]} to {requested[-1]} and gave {received[:1]} to {received[-1:]}"
        if received != requested
        else None
    )
    for rollout in (rollout for group in groups for rollout in group):
        lengths = {len(rollout.tokens_T), len(rollout.logp_T), len(rollout.version_T)}
        if len(lengths) > 1 or lengths == {0} or max(lengths) > sampling.max_response_tokens:
            fault = f"gave {rollout.id} with {sorted(lengths)} tokens, log-probabilities and versions"
        elif not np.isfinite(rollout.logp_T).all() or rollout.logp_T.max() > 1e-3:
            fault = f"gave {rollout.id} with log-probabilities from {rollout.logp_T.min()} to {rollout.logp_T.max()}"
    if fault is not None:
        raise LostWorkerError(f"rollout {worker} {fault}. Its responses are not used, and it is replaced.")
