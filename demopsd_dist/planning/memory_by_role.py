"""Memory by role: what each worker holds at its peak, item by item, GiB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from demopsd_dist.planning.drawn_batch import DrawnBatch, learner_batches, teacher_batches
from demopsd_dist.planning.forward_time import slice_tokens
from demopsd_dist.planning.hardware import GIB, Device, DeviceCluster
from demopsd_dist.planning.model_shape import ModelShape
from demopsd_dist.planning.roofline import Power
from demopsd_dist.planning.sampling_time import cache_bytes, room, workspace_bytes
from demopsd_dist.planning.workload import Split, Workload

HEAD_SLICE_TOKENS = 2048  # of the teacher's logits
LIVE_PARAMETERS = 1e9  # that ZeRO-3 keeps gathered at most
REDUCED_PARAMETERS = 5e8  # in the buffer in which ZeRO-2 and 3 reduce gradients, at most
PLAIN_LOGITS = 4  # [tokens, vocabulary] tensors in float32 that a loss without fusing holds: see docs/planning.md


@dataclass(frozen=True)
class Footprint:
    """Of one worker. `base_gib` is what its process or context has before there is a model."""

    role: str
    held: Mapping[str, float]  # for the whole run
    passing: Mapping[str, float] = field(default_factory=dict)  # at the peak of a forward or step
    base_gib: float = 0.0
    factor: float = 1.0  # of what passes, measured over counted

    @property
    def gib(self) -> float:
        return self.base_gib + sum(self.held.values()) + self.factor * sum(self.passing.values())

    def largest(self) -> str:
        """The items that matter, in falling order: `optimizer 12.0, weights 6.0`."""
        items = {**self.held, **{name: self.factor * gib for name, gib in self.passing.items()}}
        ordered = sorted(items.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {gib:.1f}" for name, gib in ordered[:3])


def in_gib(**bytes_of: float) -> dict[str, float]:
    return {name.replace("_", " "): size / GIB for name, size in bytes_of.items() if size}


def rollout_footprint(job: Workload, power: Power, engines: int) -> Footprint:
    """Of each of its processes. On a GPU the cache takes what is left of the engine's share, so the whole is that
    share."""
    cache = cache_bytes(job, power) / job.tensor_parallel
    weights = job.weights_bytes / job.tensor_parallel
    work = workspace_bytes(job)
    if power.device.shared:
        at_once = min(room(job, power), job.samples / engines)
        work = workspace_bytes(job, at_once * job.traffic.prompt_tokens)
        packed = weights  # the kernels' own copy
        held = in_gib(weights=weights, packed_weights=packed, KV_cache=cache, **_segment(job, power))
    else:
        held = in_gib(weights=weights, KV_cache=cache)
    return Footprint("rollout", held, in_gib(activations_and_logits=work))


@lru_cache(maxsize=256)
def teacher_footprint(job: Workload, power: Power, workers: int, shards: int = 1) -> Footprint:
    """Copies in float32, each shared by so many workers, and one forward without gradients.

    Who shares one has two layers whole, the one that computes and the next, or the embedding before them; and the head
    of every copy, which is applied after a forward.
    """
    batches = [
        batch
        for privileged in (False, True)
        for worker in teacher_batches(job, workers, privileged=privileged)
        for batch in worker
    ]
    shape = job.shape
    logits = max((min(batch.predicted, HEAD_SLICE_TOKENS) for batch in batches), default=0) * 4.0 * shape.vocabulary
    layer = max((_layer_bytes(job, batch, 4) for batch in batches), default=0.0)
    return Footprint(
        "teacher",
        in_gib(
            weights=4.0 * shape.parameters * job.teacher_copies / shards,
            gathered_weights=4.0 * _gathered(shape, job.teacher_copies) if shards > 1 else 0.0,
            **_segment(job, power),
        ),
        in_gib(logits=3 * logits, activations=layer),
    )


def _gathered(shape: ModelShape, copies: int) -> float:
    """Elements: each of these comes flat first, and is copied to where it is computed with."""
    layer = shape.stored / shape.layers
    one_by_one = max(2 * layer, shape.head + layer if shape.tied else 2 * shape.head)
    return one_by_one + copies * (shape.head + shape.hidden)


@lru_cache(maxsize=256)
def learner_footprint(job: Workload, power: Power, ranks: int) -> Footprint:
    """A rank's shard of weights, gradients and optimizer, and what a micro-batch keeps for its backward."""
    trained, size = float(job.trained), job.element_bytes
    parameters = float(job.shape.parameters + job.adapters)
    stage, mixed = job.zero_stage, job.precision == "bfloat16"
    part = trained / ranks
    held = in_gib(
        weights=size * (parameters / ranks if stage == 3 else parameters),
        gathered_weights=size * min(parameters, LIVE_PARAMETERS) if stage == 3 and ranks > 1 else 0.0,
        float32_weights=4 * part if stage else 0.0,
        gradients=4 * (part if stage else trained),
        optimizer=8 * (part if stage else trained),
        **_segment(job, power),
    )
    # Stage 1 keeps them until the step, 2 and 3 as long as they take to be reduced.
    on_their_way = {0: 0.0, 1: trained}.get(stage, min(trained, REDUCED_PARAMETERS))
    whole = [batch for rank in learner_batches(job, ranks) for batch in rank]
    kept = max((kept_bytes(job, batch) for batch in whole), default=0.0)
    head = job.shape.head
    passing = in_gib(
        activations=kept,
        logits_of_a_slice=3 * 4.0 * slice_tokens(power) * job.shape.vocabulary,
        gradient_of_the_head=0.0 if job.adapters else 4.0 * head + (size * head if mixed else 0),
        gradients_on_their_way=size * on_their_way,
    )
    return Footprint("learner", held, passing)


def kept_bytes(job: Workload, batch: DrawnBatch) -> float:
    """What a backward needs of a micro-batch; with checkpointing a layer keeps its input, and one by one is whole."""
    shape, size = job.shape, job.element_bytes
    whole = float(batch.tokens * shape.saved_elements() * size)
    mask = _mask_bytes(job, batch)
    if job.checkpointing:
        return shape.layers * batch.tokens * shape.hidden * size + 2 * whole + mask
    return shape.layers * whole + mask


def checkpoint_gib(job: Workload) -> float:
    """On disk: float32 values and both moments of what is trained, and the teacher's average, whole."""
    return (12.0 * job.trained + 4.0 * job.shape.parameters * job.averages) / GIB


def plain_logits_gib(job: Workload, ranks: int) -> float:
    """What the loss would hold without being fused."""
    most = max((batch.predicted for rank in learner_batches(job, ranks) for batch in rank), default=0)
    return PLAIN_LOGITS * 4.0 * most * job.shape.vocabulary / GIB


def _layer_bytes(job: Workload, batch: DrawnBatch, size: int) -> float:
    """The widest moment of a layer without gradients."""
    shape = job.shape
    width = 2 * shape.hidden + max(3 * shape.query + 2 * shape.key, 3 * shape.intermediate)
    return batch.tokens * width * size + _mask_bytes(job, batch)


def _mask_bytes(job: Workload, batch: DrawnBatch) -> float:
    """Who sees whom, as bytes, and once more as numbers for the kernel."""
    return batch.rows * batch.length**2 * (1.0 + job.element_bytes) if batch.masked else 0.0


def _segment(job: Workload, power: Power) -> dict[str, float]:
    """On CPU the shared memory through which weights are published counts with everyone who has it mapped."""
    return {"shared_with_others": float(job.weights_bytes)} if power.device.shared else {}


def footprints(
    job: Workload, split: Split, fleet: DeviceCluster, known: Mapping[str, tuple[float, float]]
) -> list[Footprint]:
    """Of one worker of each role. `known`: base_gib and factor by role."""
    device = fleet.device
    teacher = Power(device, split.teacher_threads)
    others = job.of_narrow_engines
    found = [
        rollout_footprint(job, Power(device, split.rollout_threads * job.tensor_parallel), split.rollout),
        *([teacher_footprint(others, teacher, split.teacher, split.teacher_shards)] if split.teacher else []),
        learner_footprint(others, Power(device, split.learner_threads), split.learner),
    ]
    return [
        Footprint(one.role, one.held, one.passing, *known.get(one.role, (one.base_gib, one.factor))) for one in found
    ]


def shortfalls(job: Workload, split: Split, fleet: DeviceCluster, found: list[Footprint]) -> list[str]:
    """What does not fit, by role, with the way out; nothing where all fits."""
    device, reasons = fleet.device, []
    counts = {
        "rollout": split.rollout * job.tensor_parallel,
        "teacher": split.teacher,
        "learner": split.learner,
    }
    if job.tensor_parallel > fleet.per_node:
        reasons.append(
            f"rollout.tensor_parallel={job.tensor_parallel}: an engine's processes are on one node; it has "
            f"{fleet.per_node} devices."
        )
    if job.tensor_parallel not in job.shape.ways_to_share:
        reasons.append(
            f"rollout.tensor_parallel={job.tensor_parallel}: the model's {job.shape.heads} attention heads cannot be "
            f"shared out alike. Set it to one of {', '.join(map(str, job.shape.ways_to_share))}."
        )
    claimed = sum(counts.values())
    if not split.shared and claimed > fleet.size:
        reasons.append(f"the roles claim {claimed} devices; there are {fleet.size}.")
    if split.shared:
        places = 1 if device.shared else fleet.size
        twice = sum(one.held.get("shared with others", 0.0) * counts[one.role] for one in found)
        once = max((one.held.get("shared with others", 0.0) for one in found), default=0.0)
        for when, gib_of in _moments(job, device):
            need = (sum(gib_of(one) * counts[one.role] for one in found) - twice + once) / places
            if need > device.memory_gib:
                each = " + ".join(f"{counts[one.role]} x {one.role} {gib_of(one):.1f}" for one in found)
                have = f"it has {device.memory_gib:.1f}"
                way = "" if job.adapters else "Train adapters (model.lora_rank=32), or take a smaller model."
                reasons.append(f"together {each} need {need:.1f} GiB a {_place(fleet)}{when}; {have}. {way}".rstrip())
        return reasons
    for one in found:
        if one.gib > device.memory_gib:
            reasons.append(
                f"{one.role} needs {one.gib:.1f} GiB; {device.name} has {device.memory_gib:.1f}. Most of it: "
                f"{one.largest()}. {_remedy(job, one, device)}"
            )
    longest = (job.max_prompt_tokens + job.max_response_tokens) * job.shape.kv_bytes(job.element_bytes)
    cache = cache_bytes(job, Power(device, job.tensor_parallel))
    if cache < longest:
        reasons.append(
            f"rollout has {cache / GIB:.1f} GiB for keys and values; one sequence of {job.max_prompt_tokens} + "
            f"{job.max_response_tokens} tokens needs {longest / GIB:.1f}. Lower rollout.max_response_tokens, or raise "
            "rollout.gpu_memory_fraction or rollout.tensor_parallel."
        )
    return reasons


def _moments(job: Workload, device: Device) -> list[tuple[str, Callable[[Footprint], float]]]:
    """When those who share a device want most of it, and what each has then. Engines that sleep leave what they have
    beside weights and cache to them; the others leave what passes to the engines."""
    if not job.engines_sleep or device.shared:
        return [("", lambda one: one.gib)]

    def sampling(one: Footprint) -> float:
        if one.role != "learner":
            return one.gib
        slices = one.factor * one.passing.get("logits of a slice", 0.0)  # it names the support meanwhile
        return one.base_gib + sum(one.held.values()) + slices

    def learning(one: Footprint) -> float:
        left = {"rollout": one.base_gib, "teacher": one.base_gib + sum(one.held.values())}
        return left.get(one.role, one.gib)

    return [(" while it samples", sampling), (" while it learns", learning)]


def _place(fleet: DeviceCluster) -> str:
    return "machine" if fleet.device.shared else fleet.device.name


def _remedy(job: Workload, one: Footprint, device: Device) -> str:
    if one.role == "teacher" and one.base_gib + sum(one.held.values()) > device.memory_gib:
        return (
            "Its copies are in float32: raise teacher.shards, the number of workers that share one, or use a smaller "
            "model or a method without a teacher."
        )
    if one.role == "teacher":
        return "Its copies are in float32: lower teacher.batch_tokens, or raise teacher.shards."
    if one.role == "rollout":
        return "Lower rollout.gpu_memory_fraction or rollout.max_batch_tokens."
    if one.passing.get("activations", 0.0) * one.factor > sum(one.held.values()):
        return (
            "Lower learner.micro_batch_tokens or rollout.max_response_tokens."
            if job.checkpointing
            else "Set learner.activation_checkpointing=true, or lower learner.micro_batch_tokens."
        )
    return (
        "Raise learner.num_workers: ZeRO-3 shares all of it."
        if job.zero_stage == 3
        else "Set learner.zero_stage=3, or raise learner.num_workers."
    )
