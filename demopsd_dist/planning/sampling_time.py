"""Sampling: each engine decodes a token of every sequence that it holds at once, so a step of it has a batch size that
rises as groups come in and falls as responses end. SimulatedSampling through in engine steps, then priced."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from demopsd_dist.planning.drawn_batch import DrawnResponse, responses
from demopsd_dist.planning.hardware import GB, GIB
from demopsd_dist.planning.roofline import Coefficients, Floats, Load, Power
from demopsd_dist.planning.workload import Workload

KV_BLOCK_TOKENS = {True: 128, False: 16}  # vLLM's; what siblings share is computed once in whole blocks; True: on CPU
SAMPLER_PASSES = 8  # over float32 logits: temperature, softmax twice, log-probabilities, noise, choice
LAYER_PASSES = 16  # over the hidden states of a layer, beside its products: norms, rotation, residuals, activation


@dataclass(frozen=True)
class SimulatedSampling:
    """An engine's history, step by step."""

    sequences: Floats
    prefilled: Floats  # prompt tokens
    context: Floats  # keys that all sequences together look at
    ends: tuple[int, ...]  # steps at which its groups are done, in order

    @property
    def steps(self) -> int:
        return len(self.sequences)


def played(job: Workload, engines: int, on_cpu: bool, room: int) -> list[SimulatedSampling]:
    """First come, first served; the emptiest engine serves, and a group's room is free when its last response ends.

    Args:
        room: sequences that an engine has room for; a larger group is let in alone.
    """
    return _played(job, engines, on_cpu, room)


@lru_cache(maxsize=128)
def _played(job: Workload, engines: int, on_cpu: bool, room: int) -> list[SimulatedSampling]:
    groups: dict[int, list[DrawnResponse]] = {}
    for response in responses(job):
        groups.setdefault(response.group, []).append(response)
    queue = deque(groups.values())
    taken = [0] * engines
    begun: list[list[tuple[int, list[DrawnResponse]]]] = [[] for _ in range(engines)]
    running: list[tuple[int, int, int]] = []  # (step at which a group ends, engine, sequences)
    now = 0
    while queue or running:
        while queue and (min(taken) == 0 or min(taken) + len(queue[0]) <= room):
            engine, group = taken.index(min(taken)), queue.popleft()
            begun[engine].append((now, group))
            taken[engine] += len(group)
            heapq.heappush(running, (now + max(r.tokens for r in group), engine, len(group)))
        now, engine, count = heapq.heappop(running)
        taken[engine] -= count
        while running and running[0][0] == now:
            _, engine, count = heapq.heappop(running)
            taken[engine] -= count
    return [_history(job, groups_of, on_cpu) for groups_of in begun]


def _history(job: Workload, begun: list[tuple[int, list[DrawnResponse]]], on_cpu: bool) -> SimulatedSampling:
    ends = sorted(start + max(r.tokens for r in group) for start, group in begun)
    steps = ends[-1] if ends else 0
    change, prefilled = np.zeros(steps + 1), np.zeros(steps + 1)
    weighted = np.zeros(steps + 1)  # of the starts, to know each step's sum of ages
    prompt = job.traffic.prompt_tokens
    block = KV_BLOCK_TOKENS[on_cpu]
    shared = prompt // block * block
    for start, group in begun:
        prefilled[start] += shared + len(group) * (prompt - shared)
        for response in group:
            change[start] += 1
            change[start + response.tokens] -= 1
            weighted[start] += start
            weighted[start + response.tokens] -= start
    sequences = np.cumsum(change)[:-1]
    ages = sequences * np.arange(steps) - np.cumsum(weighted)[:-1]
    return SimulatedSampling(sequences, prefilled[:-1], ages + sequences * prompt, tuple(ends))


def room(job: Workload, power: Power) -> int:
    """Sequences that an engine holds at once: what it may, and what its cache has keys and values for."""
    need = (job.traffic.prompt_tokens + job.traffic.response_tokens) * job.shape.kv_bytes(job.element_bytes)
    fitting = int(cache_bytes(job, power) // max(need, 1))
    return max(1, min(job.engine_sequences, fitting))


def cache_bytes(job: Workload, power: Power) -> float:
    """For keys and values: as told on CPU; on a GPU what weights and the work of a step leave of an engine's share."""
    if power.device.shared:
        return job.kv_cache_gib * GIB * job.tensor_parallel
    share = power.device.memory_gib * power.devices * GIB * job.engine_memory_fraction
    return max(share - job.weights_bytes - job.tensor_parallel * workspace_bytes(job), 0.0)


def workspace_bytes(job: Workload, tokens: float | None = None) -> float:
    """What a step of the engine holds beside weights and cache: its largest activations, and logits in float32.

    Args:
        tokens: in the largest step; None for as many as it may have, which is what it makes room for on a GPU.
    """
    shape = job.shape
    tokens = job.engine_tokens if tokens is None else min(job.engine_tokens, tokens)
    width = shape.query + 2 * shape.key + 2 * shape.intermediate * max(shape.experts_per_token, 1) + 2 * shape.hidden
    logits = 4.0 * job.engine_sequences * shape.vocabulary
    return tokens * width * job.element_bytes + 3.0 * logits


def step_seconds(job: Workload, power: Power, engine: SimulatedSampling) -> Floats:
    """The roofline of every step of an engine: its layers, the head, and the sampler."""
    shape, size = job.shape, job.element_bytes
    tokens = engine.sequences + engine.prefilled
    pairs = engine.context + engine.prefilled * job.traffic.prompt_tokens / 2
    layers = power.seconds(
        job.precision,
        2.0 * shape.active * tokens + float(shape.pair_flops) * pairs,
        shape.kv_bytes(size) * engine.context + _weights_read(job, tokens) * size,
    )
    rest = power.seconds(job.precision, 0.0, LAYER_PASSES * shape.layers * shape.hidden * size * tokens)
    head = power.seconds(job.precision, 2.0 * shape.head * engine.sequences, shape.head * size)
    sampler = power.seconds("float32", 0.0, 4.0 * SAMPLER_PASSES * shape.vocabulary * engine.sequences)
    return layers + rest + head + sampler


def _weights_read(job: Workload, tokens: Floats) -> Floats:
    """Parameters that a step touches: of experts those that some token is sent to."""
    shape = job.shape
    if not shape.experts:
        return np.full_like(tokens, shape.stored)
    expert = 3.0 * shape.hidden * shape.intermediate * shape.layers
    touched = shape.experts * (1 - (1 - shape.experts_per_token / shape.experts) ** tokens)
    return shape.active + expert * (touched - shape.experts_per_token)


def _exchanged_bytes(job: Workload, tokens: Floats) -> Floats:
    """Of each of an engine's processes: two sums a layer over the hidden states, by ring."""
    share = 2 * (job.tensor_parallel - 1) / job.tensor_parallel
    return share * 2 * job.shape.layers * job.shape.hidden * job.element_bytes * tokens


@dataclass(frozen=True)
class SamplingTime:
    """The slowest engine's load, and the share of it at which each group is done, over all engines."""

    load: Load
    done: tuple[float, ...]


@lru_cache(maxsize=256)
def sampled(job: Workload, power: Power, engines: int, coefficients: Coefficients) -> SamplingTime:
    shape, link = job.shape, power.device.link_gb_per_s * GB
    found: list[tuple[float, Load, list[float]]] = []
    for engine in played(job, engines, power.device.shared, room(job, power)):
        roofline = step_seconds(job, power, engine)
        layered = np.full(engine.steps, shape.layers)
        items = engine.sequences
        sent = _exchanged_bytes(job, engine.sequences + engine.prefilled) / link
        passed = np.cumsum(
            roofline / coefficients.efficiency
            + sent / coefficients.link
            + coefficients.call_s
            + layered * coefficients.layer_s
            + items * coefficients.item_s
        )
        load = Load(
            float(roofline.sum()),
            sent_s=float(sent.sum()),
            calls=engine.steps,
            layers=float(layered.sum()),
            items=float(items.sum()),
        )
        found.append((coefficients.seconds(load), load, [float(passed[end - 1]) for end in engine.ends]))
    seconds, load, _ = max(found, key=lambda engine: engine[0])
    ends = sorted(end for _, _, of_engine in found for end in of_engine)
    return SamplingTime(load, tuple(end / seconds for end in ends) if seconds else ())
