"""Work of support, scoring and learning: forwards over rows, with or without a backward, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from demopsd_dist.planning.drawn_batch import DrawnBatch, learner_batches, teacher_batches
from demopsd_dist.planning.hardware import GB, DeviceCluster
from demopsd_dist.planning.roofline import Coefficients, Load, Power
from demopsd_dist.planning.workload import ELEMENT_BYTES, Workload

LAYER_PASSES = (
    24  # over the hidden states of a layer, beside its products; torch writes every intermediate result to memory
)
ATOM_PASSES = 6  # over float32 logits: temperature, normaliser, the tail's own, top k or gather
LOSS_PASSES = 8  # the same in the fused loss, up to the gradient
SLICE_TOKENS = {"cpu": 128, "cuda": 1024}  # of the fused loss, equal to the objective's
OPTIMIZER_BYTES = 92.0  # a parameter, in torch's AdamW and clipping: one pass per operation, each reads and writes
PACKED_BYTES = 4.0  # a parameter and product: CPU kernels repack the weights for every product
GRADIENT_BYTES = 16.0  # of a parameter and micro-batch: its gradient written, and added to those before


def slice_tokens(power: Power) -> int:
    """Tokens of one slice of the fused loss on this device."""
    return SLICE_TOKENS["cpu" if power.device.shared else "cuda"]


def slowest_load(loads: Sequence[Load], coefficients: Coefficients) -> Load:
    """Load of the worker that takes longest."""
    return max(loads, key=coefficients.seconds, default=Load())


@lru_cache(maxsize=256)
def support_loads(workload: Workload, power: Power, ranks: int, cluster: DeviceCluster) -> tuple[Load, ...]:
    """Loads of the support's forward, by rank; none where the teacher or the engine chooses the support."""
    if not workload.support_forward:
        return ()
    shards = learner_batches(workload, ranks)
    gathered = Load(sent_s=gather_s(workload, ranks, cluster) * max(map(len, shards)))
    return tuple(
        _with_calls(
            workload, [_forward(workload, power, workload.precision, batch, passes=2.0) for batch in rank], rank
        )
        + gathered
        for rank in shards
    )


@lru_cache(maxsize=256)
def score_loads(
    workload: Workload, power: Power, workers: int, cluster: DeviceCluster, shards: int = 1
) -> tuple[Load, ...]:
    """Loads of scoring, by worker. Workers that share a copy gather its layers and embedding in
    every forward; the head stays on each."""
    loads = [Load()] * workers
    if not workers:
        return ()
    shape = workload.shape
    gathered_s = _ring_s(
        float(workload.teacher_bytes) * (shape.stored + (0 if shape.tied else shape.head)), shards, cluster
    )
    for privileged, times in ((False, workload.reference_forwards), (True, workload.teacher_forwards)):
        batches_by_worker = teacher_batches(workload, workers, privileged=privileged)
        exchange = Load(sent_s=gathered_s * max(map(len, batches_by_worker)))
        for worker, batches in enumerate(batches_by_worker):
            forwards = [
                _forward(workload, power, workload.teacher_precision, batch, passes=ATOM_PASSES) for batch in batches
            ]
            for _ in range(times):
                loads[worker] += _with_calls(workload, forwards, batches) + exchange
    return tuple(loads)


@lru_cache(maxsize=256)
def learn_loads(workload: Workload, power: Power, ranks: int, cluster: DeviceCluster) -> tuple[Load, ...]:
    """Loads of learning, by rank: forward and backward of every micro-batch, the exchange of gradients and weights, and
    one optimizer step."""
    shards = learner_batches(workload, ranks)
    sent_s = _communication_s(workload, ranks, cluster, max(map(len, shards)))
    once = Load(weights_s=_optimizer_s(workload, power, ranks), sent_s=sent_s, calls=1)
    return tuple(
        _with_calls(workload, [_forward_backward(workload, power, batch) for batch in shard], shard) + once
        for shard in shards
    )


def _with_calls(workload: Workload, forwards: Sequence[Load], batches: Sequence[DrawnBatch]) -> Load:
    """Sum of the forwards' loads, with their counts of calls, layers and responses."""
    calls = len(batches)
    responses = sum(batch.responses for batch in batches)
    return sum(forwards, Load(calls=calls, layers=calls * workload.shape.layers, items=responses))


def _forward(workload: Workload, power: Power, precision: str, batch: DrawnBatch, *, passes: float) -> Load:
    size = ELEMENT_BYTES[precision]
    shape = workload.shape
    logits = 4.0 * batch.predicted * shape.vocabulary
    head = power.seconds(precision, 2.0 * shape.head * batch.predicted, shape.head * size + logits)
    return _layers(workload, power, precision, batch, products=1) + Load(
        float(head + power.seconds("float32", 0.0, passes * logits))
    )


def _forward_backward(workload: Workload, power: Power, batch: DrawnBatch) -> Load:
    """Load of a forward and a backward. The backward is two forwards, for gradients of inputs and of trained weights
    (attention has no weights); with activation checkpointing the layers run once more."""
    shape, size = workload.shape, workload.element_bytes
    slices = -(-batch.predicted // slice_tokens(power))
    gradient = 2.0 * 4 * shape.head if workload.precision == "float32" else (2.0 * 4 + 2 * size) * shape.head
    products = 2 if workload.adapters else 3
    head_bytes = slices * (products * size * shape.head + (0.0 if workload.adapters else gradient))
    again = int(workload.checkpointing)
    layers = _layers(workload, power, workload.precision, batch, products=products + again, attentions=3 + again)
    adapters = power.seconds(workload.precision, 6.0 * workload.adapters * batch.tokens, 0.0)
    gradients = power.seconds("float32", 0.0, GRADIENT_BYTES * workload.trained)
    head = power.seconds(workload.precision, 2.0 * products * shape.head * batch.predicted, head_bytes)
    loss = power.seconds("float32", 0.0, 4.0 * LOSS_PASSES * batch.predicted * shape.vocabulary)
    return layers + Load(float(adapters + head + loss), weights_s=float(gradients))


def _layers(
    workload: Workload, power: Power, precision: str, batch: DrawnBatch, products: int, attentions: int = 1
) -> Load:
    """Load of the layers for several forwards. Attention computes all pairs with a mask, half of them without."""
    shape, size = workload.shape, ELEMENT_BYTES[precision]
    pairs = batch.rows * batch.length**2 / (1 if batch.masked else 2)
    weights = power.seconds(precision, 2.0 * shape.active * batch.tokens, float(shape.stored * size))
    attention = power.seconds(precision, float(shape.pair_flops) * pairs, 0.0)
    elementwise = power.seconds(precision, 0.0, float(LAYER_PASSES * shape.layers * shape.hidden * size * batch.tokens))
    packed = power.seconds(precision, 0.0, PACKED_BYTES * shape.parameters) if power.device.shared else 0.0
    return Load(products * float(weights + elementwise), attentions * float(attention), products * float(packed))


def _optimizer_s(workload: Workload, power: Power, ranks: int) -> float:
    """Seconds of AdamW over a rank's shard of the trained parameters; over all of them at ZeRO stage 0."""
    parameters = workload.trained / (ranks if workload.zero_stage else 1)
    if workload.offloads:  # gradients go to main memory, are used there, and rounded weights come back
        moved = (OPTIMIZER_BYTES + 4 + workload.element_bytes) * parameters
        return moved / (power.device.host_gb_per_s * GB)
    return float(power.seconds("float32", 0.0, OPTIMIZER_BYTES * parameters))


def _communication_s(workload: Workload, ranks: int, cluster: DeviceCluster, micro_batches: int) -> float:
    """Seconds of a step's ring collectives: each moves (n - 1)/n of the tensors through the slowest link of a rank.

    Stages 0 and 1 reduce gradients once a step, stage 2 after every micro-batch; 1 and 2 gather the weights once. Stage
    3 gathers them for the forward and the backward of every micro-batch, and reduces gradients after it.
    """
    times = {0: 2, 1: 2, 2: micro_batches + 1, 3: micro_batches}[workload.zero_stage]
    reduced_s = times * _ring_s(workload.trained * workload.element_bytes, ranks, cluster)
    return reduced_s + 2 * micro_batches * gather_s(workload, ranks, cluster)


def gather_s(workload: Workload, ranks: int, cluster: DeviceCluster) -> float:
    """Seconds to gather all weights once, as ZeRO stage 3 does before computing or publishing; 0 at other stages."""
    return _ring_s(workload.weights_bytes, ranks, cluster) if workload.zero_stage == 3 else 0.0


def _ring_s(size: float, ranks: int, cluster: DeviceCluster) -> float:
    """Seconds of one ring collective over `size` bytes."""
    device = cluster.device
    rate = device.link_gb_per_s if ranks <= cluster.per_node else min(device.link_gb_per_s, device.network_gb_per_s)
    return (ranks - 1) / ranks * size / (rate * GB)
