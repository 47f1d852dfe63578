"""Support, scoring and learning: forwards over rows, with or without a backward, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from demopsd_dist.planning.drawn_batch import DrawnBatch, learner_batches, teacher_batches
from demopsd_dist.planning.hardware import GB, DeviceCluster
from demopsd_dist.planning.roofline import Coefficients, Load, Power
from demopsd_dist.planning.workload import ELEMENT_BYTES, Workload

LAYER_PASSES = 24  # over the hidden states of a layer, beside its products; torch writes every intermediate result
ATOM_PASSES = 6  # over float32 logits: temperature, normaliser, the tail's own, top k or gather
LOSS_PASSES = 8  # the same in the fused loss, up to the gradient
SLICE_TOKENS = {"cpu": 128, "cuda": 1024}  # of the fused loss, as the objective has them
OPTIMIZER_BYTES = 92.0  # of a parameter, by torch's AdamW and clipping: an operation a pass, each reads and writes
PACKED_BYTES = 4.0  # of a parameter and product: kernels of a CPU bring weights into their own order each time
GRADIENT_BYTES = 16.0  # of a parameter and micro-batch: its gradient written, and added to those before


def slice_tokens(power: Power) -> int:
    """Of the fused loss."""
    return SLICE_TOKENS["cpu" if power.device.shared else "cuda"]


def heaviest(loads: Sequence[Load], coefficients: Coefficients) -> Load:
    return max(loads, key=coefficients.seconds, default=Load())


@lru_cache(maxsize=256)
def support_loads(job: Workload, power: Power, ranks: int, fleet: DeviceCluster) -> tuple[Load, ...]:
    """By rank; nothing where the teacher or the engine names the support."""
    if not job.support_forward:
        return ()
    shards = learner_batches(job, ranks)
    gathered = Load(sent_s=gathered_s(job, ranks, fleet) * max(map(len, shards)))
    return tuple(
        _counted(job, [_forward(job, power, job.precision, batch, passes=2.0) for batch in rank], rank) + gathered
        for rank in shards
    )


@lru_cache(maxsize=256)
def score_loads(job: Workload, power: Power, workers: int, fleet: DeviceCluster, shards: int = 1) -> tuple[Load, ...]:
    """By worker. The copies are in float32. Those who share one gather layers and embedding at every
    forward; the head stays."""
    loads = [Load()] * workers
    if not workers:
        return ()
    shape = job.shape
    gathered_s = _moved_s(4.0 * (shape.stored + (0 if shape.tied else shape.head)), shards, fleet)
    for privileged, times in ((False, job.reference_forwards), (True, job.teacher_forwards)):
        of_each = teacher_batches(job, workers, privileged=privileged)
        together = Load(sent_s=gathered_s * max(map(len, of_each)))
        for worker, batches in enumerate(of_each):
            forwards = [_forward(job, power, job.teacher_precision, batch, passes=ATOM_PASSES) for batch in batches]
            for _ in range(times):
                loads[worker] += _counted(job, forwards, batches) + together
    return tuple(loads)


@lru_cache(maxsize=256)
def learn_loads(job: Workload, power: Power, ranks: int, fleet: DeviceCluster) -> tuple[Load, ...]:
    """By rank: forward and backward of every micro-batch, gradients and weights to and from the others, one step."""
    shards = learner_batches(job, ranks)
    sent_s = _exchanged_s(job, ranks, fleet, max(map(len, shards)))
    together = Load(weights_s=_optimizer_s(job, power, ranks), sent_s=sent_s, calls=1)
    return tuple(
        _counted(job, [_forward_backward(job, power, batch) for batch in shard], shard) + together for shard in shards
    )


def _counted(job: Workload, forwards: Sequence[Load], batches: Sequence[DrawnBatch]) -> Load:
    calls = len(batches)
    responses = sum(batch.responses for batch in batches)
    return sum(forwards, Load(calls=calls, layers=calls * job.shape.layers, items=responses))


def _forward(job: Workload, power: Power, precision: str, batch: DrawnBatch, *, passes: float) -> Load:
    size = ELEMENT_BYTES[precision]
    shape = job.shape
    logits = 4.0 * batch.predicted * shape.vocabulary
    head = power.seconds(precision, 2.0 * shape.head * batch.predicted, shape.head * size + logits)
    return _layers(job, power, precision, batch, products=1) + Load(
        float(head + power.seconds("float32", 0.0, passes * logits))
    )


def _forward_backward(job: Workload, power: Power, batch: DrawnBatch) -> Load:
    """A backward is two forwards: gradients of what went in, and of the weights where these are trained; attention has
    none. With checkpointing the layers run a third time."""
    shape, size = job.shape, job.element_bytes
    slices = -(-batch.predicted // slice_tokens(power))
    gradient = 2.0 * 4 * shape.head if job.precision == "float32" else (2.0 * 4 + 2 * size) * shape.head
    products = 2 if job.adapters else 3
    head_bytes = slices * (products * size * shape.head + (0.0 if job.adapters else gradient))
    again = int(job.checkpointing)
    layers = _layers(job, power, job.precision, batch, products=products + again, attentions=3 + again)
    adapters = power.seconds(job.precision, 6.0 * job.adapters * batch.tokens, 0.0)
    gradients = power.seconds("float32", 0.0, GRADIENT_BYTES * job.trained)
    head = power.seconds(job.precision, 2.0 * products * shape.head * batch.predicted, head_bytes)
    loss = power.seconds("float32", 0.0, 4.0 * LOSS_PASSES * batch.predicted * shape.vocabulary)
    return layers + Load(float(adapters + head + loss), weights_s=float(gradients))


def _layers(job: Workload, power: Power, precision: str, batch: DrawnBatch, products: int, attentions: int = 1) -> Load:
    """So many times what a forward takes. A mask is looked at in full; without one half of the pairs are."""
    shape, size = job.shape, ELEMENT_BYTES[precision]
    pairs = batch.rows * batch.length**2 / (1 if batch.masked else 2)
    weights = power.seconds(precision, 2.0 * shape.active * batch.tokens, float(shape.stored * size))
    attention = power.seconds(precision, float(shape.pair_flops) * pairs, 0.0)
    rest = power.seconds(precision, 0.0, float(LAYER_PASSES * shape.layers * shape.hidden * size * batch.tokens))
    packed = power.seconds(precision, 0.0, PACKED_BYTES * shape.parameters) if power.device.shared else 0.0
    return Load(products * float(weights + rest), attentions * float(attention), products * float(packed))


def _optimizer_s(job: Workload, power: Power, ranks: int) -> float:
    """AdamW over a rank's own part of what is trained, or over all of it at stage 0."""
    own = job.trained / (ranks if job.zero_stage else 1)
    return float(power.seconds("float32", 0.0, OPTIMIZER_BYTES * own))


def _exchanged_s(job: Workload, ranks: int, fleet: DeviceCluster, micro_batches: int) -> float:
    """Ring collectives: each moves (n - 1)/n of the tensors through the slowest link of a rank.

    Stages 0 and 1 reduce gradients once a step, stage 2 after every micro-batch; 1 and 2 gather the weights once. Stage
    3 gathers them for the forward and the backward of every micro-batch, and reduces gradients after it.
    """
    times = {0: 2, 1: 2, 2: micro_batches + 1, 3: micro_batches}[job.zero_stage]
    reduced_s = times * _moved_s(job.trained * job.element_bytes, ranks, fleet)
    return reduced_s + 2 * micro_batches * gathered_s(job, ranks, fleet)


def gathered_s(job: Workload, ranks: int, fleet: DeviceCluster) -> float:
    """All weights, once: before anything is computed or published at stage 3, else never."""
    return _moved_s(job.weights_bytes, ranks, fleet) if job.zero_stage == 3 else 0.0


def _moved_s(size: float, ranks: int, fleet: DeviceCluster) -> float:
    device = fleet.device
    rate = device.link_gb_per_s if ranks <= fleet.per_node else min(device.link_gb_per_s, device.network_gb_per_s)
    return (ranks - 1) / ranks * size / (rate * GB)
