"""Memory of a worker by role: its items at the peak, in GiB, and the reasons why a split does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from demopsd_dist.planning.drawn_batch import DrawnBatch, learner_batches, teacher_batches
from demopsd_dist.planning.forward_time import slice_tokens
from demopsd_dist.planning.hardware import GIB, Device, DeviceCluster
from demopsd_dist.planning.model_shape import ModelShape
from demopsd_dist.planning.roofline import Power
from demopsd_dist.planning.sampling_time import cache_bytes, sequence_capacity, workspace_bytes
from demopsd_dist.planning.workload import Split, Workload

HEAD_SLICE_TOKENS = 2048  # tokens whose logits the teacher computes at once
LIVE_PARAMETERS = 1e9  # most elements that ZeRO-3 has gathered at one time
REDUCED_PARAMETERS = 5e8  # most elements in the buffer in which ZeRO-2 and 3 reduce gradients on GPUs
CPU_REDUCED_PARAMETERS = float(1 << 22)  # the same on CPU, as workers/learner/zero.py sets it; or the largest tensor
MOMENT_BYTES = {False: 8.0, True: 2.0 * (1 + 4 / 256)}  # both moments of a parameter; in 8 bits 256 share a scale
SAVED_MOMENT_BYTES = {False: 8.0, True: 16.0}  # in a checkpoint: float32, with a scale for each number in 8 bits
UNFUSED_LOGITS = 4  # float32 tensors [tokens, vocabulary] that an unfused loss holds


@dataclass(frozen=True)
class Footprint:
    """Memory of one worker. `base_gib` is its process or CUDA context before a model is loaded."""

    role: str
    persistent: Mapping[str, float]  # GiB held for the whole run, by item
    transient: Mapping[str, float] = field(default_factory=dict)  # GiB at the peak of a forward or step, by item
    base_gib: float = 0.0
    factor: float = 1.0  # measured over computed transient memory

    @property
    def gib(self) -> float:
        return self.base_gib + sum(self.persistent.values()) + self.factor * sum(self.transient.values())

    def largest_items(self) -> str:
        """Three largest items in falling order: `optimizer 12.0, weights 6.0, gradients 6.0`."""
        items = {**self.persistent, **{name: self.factor * gib for name, gib in self.transient.items()}}
        ordered = sorted(items.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {gib:.1f}" for name, gib in ordered[:3])


def _gib_by_item(**bytes_of: float) -> dict[str, float]:
    return {name.replace("_", " "): size / GIB for name, size in bytes_of.items() if size}


def rollout_footprint(workload: Workload, power: Power, engines: int) -> Footprint:
    """Memory of each process of an engine. On a GPU the cache takes the rest of the engine's share, so that the sum is
    the share."""
    cache = cache_bytes(workload, power) / workload.tensor_parallel
    weights = workload.weights_bytes / workload.tensor_parallel
    work = workspace_bytes(workload)
    if power.device.shared:
        at_once = min(sequence_capacity(workload, power), workload.samples / engines)
        work = workspace_bytes(workload, at_once * workload.traffic.prompt_tokens)
        packed = weights  # copy in the kernels' own layout
        persistent = _gib_by_item(
            weights=weights, packed_weights=packed, KV_cache=cache, **_shared_segment(workload, power)
        )
    else:
        persistent = _gib_by_item(weights=weights, KV_cache=cache)
    return Footprint("rollout", persistent, _gib_by_item(activations_and_logits=work))


@lru_cache(maxsize=256)
def teacher_footprint(workload: Workload, power: Power, workers: int, shards: int = 1) -> Footprint:
    """Memory of a teacher worker: copies and averages, each over `shards` workers, and a forward without gradients.

    With shards a worker also holds two gathered layers (the one that computes and the next) or the embedding, and the
    head of every copy, which is applied after a forward.
    """
    batches = [
        batch
        for privileged in (False, True)
        for worker in teacher_batches(workload, workers, privileged=privileged)
        for batch in worker
    ]
    shape = workload.shape
    logits = max((min(batch.predicted, HEAD_SLICE_TOKENS) for batch in batches), default=0) * 4.0 * shape.vocabulary
    size = workload.teacher_bytes
    layer = max((_layer_bytes(workload, batch, size) for batch in batches), default=0.0)
    has_average = workload.teacher_half and workload.averages
    return Footprint(
        "teacher",
        _gib_by_item(
            weights=float(size) * shape.parameters * workload.teacher_copies / shards,
            float32_average=4.0 * shape.parameters / shards if has_average else 0.0,
            gathered_weights=float(size) * _gathered(shape, workload.teacher_copies) if shards > 1 else 0.0,
            **_shared_segment(workload, power),
        ),
        _gib_by_item(logits=3 * logits, activations=layer),
    )


def _teacher_formats(workload: Workload) -> str:
    """Number formats of the weights that the teacher holds, in words."""
    if not workload.teacher_half:
        return "float32"
    return "bfloat16, with an average in float32" if workload.averages else "bfloat16"


def _gathered(shape: ModelShape, copies: int) -> float:
    """Gathered elements: layers and embedding arrive flat and are copied into place, so both exist at once."""
    layer = shape.stored / shape.layers
    one_by_one = max(2 * layer, shape.head + layer if shape.tied else 2 * shape.head)
    return one_by_one + copies * (shape.head + shape.hidden)


@lru_cache(maxsize=256)
def learner_footprint(workload: Workload, power: Power, ranks: int) -> Footprint:
    """Memory of a rank: its shard of weights, gradients and optimizer, and a micro-batch's saved activations."""
    trained, size = float(workload.trained), workload.element_bytes
    parameters = float(workload.shape.parameters + workload.adapters)
    stage, mixed = workload.zero_stage, workload.precision == "bfloat16"
    part = trained / ranks
    persistent = _gib_by_item(
        weights=size * (parameters / ranks if stage == 3 else parameters),
        gathered_weights=size * min(parameters, LIVE_PARAMETERS) if stage == 3 and ranks > 1 else 0.0,
        float32_weights=4 * part if stage and not workload.offloads else 0.0,
        gradients=0.0 if workload.offloads else 4 * (part if stage else trained),
        optimizer=0.0 if workload.offloads else MOMENT_BYTES[workload.moments_8bit] * (part if stage else trained),
        published_weights=float(workload.weights_bytes) if workload.keeps_published else 0.0,
        **_shared_segment(workload, power),
    )
    # Stage 1 keeps gradients until the step, stages 2 and 3 until they are reduced.
    bucket = max(CPU_REDUCED_PARAMETERS, workload.shape.head) if power.device.shared else REDUCED_PARAMETERS
    buffered = {0: 0.0, 1: trained}.get(stage, min(trained, bucket))
    batches = [batch for rank in learner_batches(workload, ranks) for batch in rank]
    activations = max((saved_activation_bytes(workload, batch) for batch in batches), default=0.0)
    head = workload.shape.head
    transient = _gib_by_item(
        activations=activations,
        logits_of_a_slice=3 * 4.0 * slice_tokens(power) * workload.shape.vocabulary,
        gradient_of_the_head=0.0 if workload.adapters else 4.0 * head + (size * head if mixed else 0),
        gradient_buffers=size * buffered,
    )
    return Footprint("learner", persistent, transient)


def saved_activation_bytes(workload: Workload, batch: DrawnBatch) -> float:
    """Bytes saved for the backward of a micro-batch; with checkpointing each layer's input, and all of one layer."""
    shape, size = workload.shape, workload.element_bytes
    layer = float(batch.tokens * shape.saved_elements() * size)
    mask = _mask_bytes(workload, batch)
    if workload.checkpointing:
        return shape.layers * batch.tokens * shape.hidden * size + 2 * layer + mask
    return shape.layers * layer + mask


def checkpoint_gib(workload: Workload) -> float:
    """GiB of a checkpoint on disk: float32 values and both moments of trained parameters, and the teacher's average."""
    each = 4.0 + SAVED_MOMENT_BYTES[workload.moments_8bit]
    return (each * workload.trained + 4.0 * workload.shape.parameters * workload.averages) / GIB


def unfused_logits_gib(workload: Workload, ranks: int) -> float:
    """GiB of logits that an unfused loss would hold in a learner."""
    tokens = max((batch.predicted for rank in learner_batches(workload, ranks) for batch in rank), default=0)
    return UNFUSED_LOGITS * 4.0 * tokens * workload.shape.vocabulary / GIB


def _layer_bytes(workload: Workload, batch: DrawnBatch, size: int) -> float:
    """Bytes of a layer's activations at their peak, without gradients."""
    shape = workload.shape
    width = 2 * shape.hidden + max(3 * shape.query + 2 * shape.key, 3 * shape.intermediate)
    return batch.tokens * width * size + _mask_bytes(workload, batch)


def _mask_bytes(workload: Workload, batch: DrawnBatch) -> float:
    """Bytes of the attention mask, as booleans and once more as numbers for the kernel."""
    return batch.rows * batch.length**2 * (1.0 + workload.element_bytes) if batch.masked else 0.0


def _shared_segment(workload: Workload, power: Power) -> dict[str, float]:
    """Shared memory through which weights are published on CPU: it counts in every process that maps it."""
    mapped = power.device.shared and workload.maps_weights
    return {"shared_memory": float(workload.weights_bytes)} if mapped else {}


def memory_footprints(
    workload: Workload, split: Split, cluster: DeviceCluster, memory: Mapping[str, tuple[float, float]]
) -> list[Footprint]:
    """Memory of one worker of each role.

    Args:
        memory: calibrated base_gib and factor by role; a role that is missing has 0 and 1.
    """
    device = cluster.device
    teacher = Power(device, split.teacher_threads)
    forwards = workload.with_single_device_engines
    counted = [
        rollout_footprint(workload, Power(device, split.rollout_threads * workload.tensor_parallel), split.rollout),
        *([teacher_footprint(forwards, teacher, split.teacher, split.teacher_shards)] if split.teacher else []),
        learner_footprint(forwards, Power(device, split.learner_threads), split.learner),
    ]
    return [
        Footprint(one.role, one.persistent, one.transient, *memory.get(one.role, (one.base_gib, one.factor)))
        for one in counted
    ]


def shortfalls(workload: Workload, split: Split, cluster: DeviceCluster, footprints: Sequence[Footprint]) -> list[str]:
    """Reasons why a split does not fit, each with a remedy; empty if the split fits."""
    counts = _processes(workload, split)
    reasons = _tensor_parallel_shortfalls(workload, cluster)
    claimed = sum(counts.values())
    if split.shared:
        alone = [one for one in footprints if one.role in split.alone]
        together = [one for one in footprints if one.role not in split.alone]
        own = sum(counts[one.role] for one in alone)
        if own + bool(together) > cluster.size:
            roles = " and ".join(one.role for one in alone)
            reasons.append(f"{roles} claim {own} devices beside those that are shared; there are {cluster.size}.")
        return [
            *reasons,
            *(_own_device_shortfalls(workload, cluster.device, alone) if alone else []),
            *_shared_device_shortfalls(workload, _shared_devices(cluster, split, counts), together, counts),
        ]
    if claimed > cluster.size:
        reasons.append(f"the roles claim {claimed} devices; there are {cluster.size}.")
    return reasons + _own_device_shortfalls(workload, cluster.device, footprints)


def fitting_memory(workload: Workload, split: Split, cluster: DeviceCluster, footprints: Sequence[Footprint]) -> str:
    """Memory that a split that fits takes of a device: of all roles where they share it, else of the largest worker."""
    device = cluster.device
    if not split.shared:
        largest = max(footprints, key=lambda one: one.gib)
        return f"the largest worker, {largest.role}, takes {largest.gib:.1f} of {device.memory_gib:.1f} GiB"
    counts = _processes(workload, split)
    together = [one for one in footprints if one.role not in split.alone]
    needs = _shared_device_needs(workload, _shared_devices(cluster, split, counts), together, counts)
    need = max(gib for *_, gib in needs)
    where = "the machine" if device.shared else f"one {device.name}"
    roles = "all roles" if len(together) == len(footprints) else " and ".join(one.role for one in together)
    return f"{roles} together take {need:.1f} of the {device.memory_gib:.1f} GiB of {where}"


def _shared_devices(cluster: DeviceCluster, split: Split, counts: Mapping[str, int]) -> DeviceCluster:
    """The devices that are left for the roles that share, at least one."""
    own = sum(counts[role] for role in split.alone)
    return replace(cluster, nodes=1, per_node=max(1, cluster.size - own)) if own else cluster


def _processes(workload: Workload, split: Split) -> dict[str, int]:
    """Number of each role's processes."""
    return {
        "rollout": split.rollout * workload.tensor_parallel,
        "teacher": split.teacher,
        "learner": split.learner,
    }


def _tensor_parallel_shortfalls(workload: Workload, cluster: DeviceCluster) -> list[str]:
    reasons = []
    width, sizes = workload.tensor_parallel, workload.shape.tensor_parallel_sizes
    if width > cluster.per_node:
        reasons.append(
            f"rollout.tensor_parallel={width}: an engine's processes are on one node; it has "
            f"{cluster.per_node} devices."
        )
    if width not in sizes:
        reasons.append(
            f"rollout.tensor_parallel={width}: the model's {workload.shape.heads} attention heads cannot be "
            f"split evenly. Set it to one of {', '.join(map(str, sizes))}."
        )
    return reasons


def _shared_device_shortfalls(
    workload: Workload, cluster: DeviceCluster, footprints: Sequence[Footprint], counts: Mapping[str, int]
) -> list[str]:
    """Shortfalls where all roles share the devices: their memory adds up."""
    device, reasons = cluster.device, []
    for when, gib_of, need in _shared_device_needs(workload, cluster, footprints, counts):
        if need > device.memory_gib:
            each = " + ".join(f"{counts[one.role]} x {one.role} {gib_of(one):.1f}" for one in footprints)
            have = f"it has {device.memory_gib:.1f}"
            remedy = "" if workload.adapters else "Train adapters (model.lora_rank=32), or take a smaller model."
            where = "machine" if device.shared else device.name
            reasons.append(f"together {each} need {need:.1f} GiB per {where}{when}; {have}. {remedy}".rstrip())
    return reasons


def _shared_device_needs(
    workload: Workload, cluster: DeviceCluster, footprints: Sequence[Footprint], counts: Mapping[str, int]
) -> list[tuple[str, Callable[[Footprint], float], float]]:
    """Moments at which shared devices are fullest, each role's GiB then, and the GiB of all roles on one device."""
    memories = 1 if cluster.device.shared else cluster.size
    mapped = sum(one.persistent.get("shared memory", 0.0) * counts[one.role] for one in footprints)
    once = max((one.persistent.get("shared memory", 0.0) for one in footprints), default=0.0)
    return [
        (when, gib_of, (sum(gib_of(one) * counts[one.role] for one in footprints) - mapped + once) / memories)
        for when, gib_of in _memory_peaks(workload, cluster.device)
    ]


def _own_device_shortfalls(workload: Workload, device: Device, footprints: Sequence[Footprint]) -> list[str]:
    """Shortfalls where every worker has devices of its own."""
    reasons = [
        f"{footprint.role} needs {footprint.gib:.1f} GiB; {device.name} has {device.memory_gib:.1f}. Most of it: "
        f"{footprint.largest_items()}. {_remedy(workload, footprint, device)}"
        for footprint in footprints
        if footprint.gib > device.memory_gib
    ]
    sequence_tokens = workload.max_prompt_tokens + workload.max_response_tokens
    longest = sequence_tokens * workload.shape.kv_bytes(workload.element_bytes)
    cache = cache_bytes(workload, Power(device, workload.tensor_parallel))
    if cache < longest:
        reasons.append(
            f"rollout has {cache / GIB:.1f} GiB for keys and values; one sequence of {workload.max_prompt_tokens} + "
            f"{workload.max_response_tokens} tokens needs {longest / GIB:.1f}. Lower rollout.max_response_tokens, or "
            "raise rollout.gpu_memory_fraction or rollout.tensor_parallel."
        )
    return reasons


def _memory_peaks(workload: Workload, device: Device) -> list[tuple[str, Callable[[Footprint], float]]]:
    """Moments at which shared devices are fullest, and each role's GiB then.

    Engines that sleep while the learners learn free their weights and cache; while they sample, the learners hold no
    transient memory.
    """
    if not workload.engines_sleep or device.shared:
        return [("", lambda one: one.gib)]

    def sampling(footprint: Footprint) -> float:
        if footprint.role != "learner":
            return footprint.gib
        # the learner computes the support while engines sample
        slices = footprint.factor * footprint.transient.get("logits of a slice", 0.0)
        return footprint.base_gib + sum(footprint.persistent.values()) + slices

    def learning(footprint: Footprint) -> float:
        gib_by_role = {
            "rollout": footprint.base_gib,
            "teacher": footprint.base_gib + sum(footprint.persistent.values()),
        }
        return gib_by_role.get(footprint.role, footprint.gib)

    return [(" while it samples", sampling), (" while it learns", learning)]


def _remedy(workload: Workload, footprint: Footprint, device: Device) -> str:
    if footprint.role == "teacher" and footprint.base_gib + sum(footprint.persistent.values()) > device.memory_gib:
        return (
            f"Its weights are in {_teacher_formats(workload)}: raise teacher.shards, the number of workers that share "
            "one, or use a smaller model or a method without a teacher."
        )
    if footprint.role == "teacher":
        return f"Its weights are in {_teacher_formats(workload)}: lower teacher.batch_tokens, or raise teacher.shards."
    if footprint.role == "rollout":
        return "Lower rollout.gpu_memory_fraction or rollout.max_batch_tokens."
    if footprint.transient.get("activations", 0.0) * footprint.factor > sum(footprint.persistent.values()):
        return (
            "Lower learner.micro_batch_tokens or rollout.max_response_tokens."
            if workload.checkpointing
            else "Set learner.activation_checkpointing=true, or lower learner.micro_batch_tokens."
        )
    return (
        "Raise learner.num_workers: ZeRO-3 divides weights, gradients and moments among the learners."
        if workload.zero_stage == 3
        else "Set learner.zero_stage=3, or raise learner.num_workers."
    )
