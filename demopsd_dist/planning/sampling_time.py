"""Sampling time: a step of an engine decodes one token of every sequence that it holds, so its batch size rises as
groups start and falls as responses end. The engines' steps are simulated, then turned into seconds."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from demopsd_dist.planning.drawn_batch import DrawnResponse, draw_responses
from demopsd_dist.planning.hardware import GB, GIB
from demopsd_dist.planning.roofline import Coefficients, Floats, Load, Power
from demopsd_dist.planning.workload import Workload

KV_BLOCK_TOKENS = {True: 128, False: 16}  # vLLM's; siblings share the whole blocks of their prompt; True: on CPU
SAMPLER_PASSES = 8  # over float32 logits: temperature, softmax twice, log-probabilities, noise, choice
LAYER_PASSES = 16  # over the hidden states of a layer, beside its products: norms, rotation, residuals, activation


@dataclass(frozen=True)
class SimulatedSampling:
    """History of one engine, step by step."""

    sequences: Floats  # decoded in each step
    prefilled: Floats  # prompt tokens computed in each step
    context: Floats  # keys that all sequences together attend to in each step
    ends: tuple[int, ...]  # steps at which its groups are done, rising

    @property
    def steps(self) -> int:
        return len(self.sequences)


@lru_cache(maxsize=128)
def simulate_engines(workload: Workload, engines: int, on_cpu: bool, capacity: int) -> list[SimulatedSampling]:
    """Simulate all engines. Groups start in order, on the engine with the fewest sequences; a group's places are free
    when its last response ends.

    Args:
        capacity: sequences that an engine holds at once; a larger group starts alone.
    """
    groups: dict[int, list[DrawnResponse]] = {}
    for response in draw_responses(workload):
        groups.setdefault(response.group, []).append(response)
    queue = deque(groups.values())
    active = [0] * engines
    started: list[list[tuple[int, list[DrawnResponse]]]] = [[] for _ in range(engines)]
    running: list[tuple[int, int, int]] = []  # (step at which a group ends, engine, sequences)
    now = 0
    while queue or running:
        while queue and (min(active) == 0 or min(active) + len(queue[0]) <= capacity):
            engine, group = active.index(min(active)), queue.popleft()
            started[engine].append((now, group))
            active[engine] += len(group)
            heapq.heappush(running, (now + max(r.tokens for r in group), engine, len(group)))
        now, engine, count = heapq.heappop(running)
        active[engine] -= count
        while running and running[0][0] == now:
            _, engine, count = heapq.heappop(running)
            active[engine] -= count
    return [_history(workload, groups_of_engine, on_cpu) for groups_of_engine in started]


def _history(workload: Workload, started: list[tuple[int, list[DrawnResponse]]], on_cpu: bool) -> SimulatedSampling:
    ends = sorted(start + max(r.tokens for r in group) for start, group in started)
    steps = ends[-1] if ends else 0
    change, prefilled = np.zeros(steps + 1), np.zeros(steps + 1)
    start_change = np.zeros(steps + 1)  # change of the sum of running sequences' starts, for each step's sum of ages
    prompt = workload.traffic.prompt_tokens
    block = KV_BLOCK_TOKENS[on_cpu]
    shared = prompt // block * block
    for start, group in started:
        prefilled[start] += shared + len(group) * (prompt - shared)
        for response in group:
            change[start] += 1
            change[start + response.tokens] -= 1
            start_change[start] += start
            start_change[start + response.tokens] -= start
    sequences = np.cumsum(change)[:-1]
    ages = sequences * np.arange(steps) - np.cumsum(start_change)[:-1]
    return SimulatedSampling(sequences, prefilled[:-1], ages + sequences * prompt, tuple(ends))


def sequence_capacity(workload: Workload, power: Power) -> int:
    """Sequences that an engine holds at once: as configured, or fewer where its cache has no memory for their keys."""
    tokens = workload.traffic.prompt_tokens + workload.traffic.response_tokens
    need = tokens * workload.shape.kv_bytes(workload.element_bytes)
    fitting = int(cache_bytes(workload, power) // max(need, 1))
    return max(1, min(workload.engine_sequences, fitting))


def cache_bytes(workload: Workload, power: Power) -> float:
    """Bytes for keys and values: as configured on CPU; on a GPU the engine's share less weights and workspace."""
    if power.device.shared:
        return workload.kv_cache_gib * GIB * workload.tensor_parallel
    share = power.device.memory_gib * power.devices * GIB * workload.engine_memory_fraction
    return max(share - workload.weights_bytes - workload.tensor_parallel * workspace_bytes(workload), 0.0)


def workspace_bytes(workload: Workload, tokens: float | None = None) -> float:
    """Bytes of an engine step beside weights and cache: its largest activations, and logits in float32.

    Args:
        tokens: in the largest step; None for `rollout.max_batch_tokens`, for which an engine reserves memory on a GPU.
    """
    shape = workload.shape
    tokens = workload.engine_tokens if tokens is None else min(workload.engine_tokens, tokens)
    width = shape.query + 2 * shape.key + 2 * shape.intermediate * max(shape.experts_per_token, 1) + 2 * shape.hidden
    logits = 4.0 * workload.engine_sequences * shape.vocabulary
    return tokens * width * workload.element_bytes + 3.0 * logits


def engine_steps_s(workload: Workload, power: Power, engine: SimulatedSampling) -> Floats:
    """Roofline seconds of every step of an engine: its layers, the head, and the sampler."""
    shape, size = workload.shape, workload.element_bytes
    tokens = engine.sequences + engine.prefilled
    pairs = engine.context + engine.prefilled * workload.traffic.prompt_tokens / 2
    layers = power.seconds(
        workload.precision,
        2.0 * shape.active * tokens + float(shape.pair_flops) * pairs,
        shape.kv_bytes(size) * engine.context + _weights_read(workload, tokens) * size,
    )
    rest = power.seconds(workload.precision, 0.0, LAYER_PASSES * shape.layers * shape.hidden * size * tokens)
    head = power.seconds(workload.precision, 2.0 * shape.head * engine.sequences, shape.head * size)
    sampler = power.seconds("float32", 0.0, 4.0 * SAMPLER_PASSES * shape.vocabulary * engine.sequences)
    return layers + rest + head + sampler


def _weights_read(workload: Workload, tokens: Floats) -> Floats:
    """Parameters that each step reads: of the experts only those that some token is routed to."""
    shape = workload.shape
    if not shape.experts:
        return np.full_like(tokens, shape.stored)
    expert = 3.0 * shape.hidden * shape.intermediate * shape.layers
    touched = shape.experts * (1 - (1 - shape.experts_per_token / shape.experts) ** tokens)
    return shape.active + expert * (touched - shape.experts_per_token)


def _all_reduce_bytes(workload: Workload, tokens: Floats) -> Floats:
    """Bytes that each process of an engine sends: two ring all-reduces of the hidden states a layer."""
    share = 2 * (workload.tensor_parallel - 1) / workload.tensor_parallel
    return share * 2 * workload.shape.layers * workload.shape.hidden * workload.element_bytes * tokens


@dataclass(frozen=True)
class SamplingTime:
    """Load of the slowest engine, and the shares of its time at which groups are done, over all engines."""

    load: Load
    done: tuple[float, ...]


@lru_cache(maxsize=256)
def sampling_time(workload: Workload, power: Power, engines: int, coefficients: Coefficients) -> SamplingTime:
    """Simulate the sampling of one step's groups on a number of engines."""
    shape, link = workload.shape, power.device.link_gb_per_s * GB
    timed: list[tuple[float, Load, list[float]]] = []
    for engine in simulate_engines(workload, engines, power.device.shared, sequence_capacity(workload, power)):
        roofline = engine_steps_s(workload, power, engine)
        layered = np.full(engine.steps, shape.layers)
        items = engine.sequences
        sent = _all_reduce_bytes(workload, engine.sequences + engine.prefilled) / link
        elapsed = np.cumsum(
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
        timed.append((coefficients.seconds(load), load, [float(elapsed[end - 1]) for end in engine.ends]))
    seconds, load, _ = max(timed, key=lambda engine: engine[0])
    ends = sorted(end for _, _, engine_ends in timed for end in engine_ends)
    return SamplingTime(load, tuple(end / seconds for end in ends) if seconds else ())
