"""Work of one step and the workers that do it, as plain numbers: from a config, a model's shape, and statistics of the
data that are known or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from demopsd_dist.config import (
    Config,
    Offload,
    OnPublish,
    Optimizer,
    Precision,
    Transport,
    WeightSource,
    teacher_precision,
)
from demopsd_dist.methods import SupportKind, resolve_method, teacher_weights
from demopsd_dist.planning.model_shape import PROJECTIONS, ModelShape
from demopsd_dist.util.errors import ConfigError

ELEMENT_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2}
TEMPLATE_TOKENS = 16  # of the privileged template, beside prompt and solution


@dataclass(frozen=True)
class Traffic:
    """Statistics of the data that no config gives. The defaults are assumptions, and a plan prints them."""

    prompt_tokens: float = 200.0
    response_tokens: float = 0.0  # mean; 0: half of rollout.max_response_tokens
    response_spread: float = 0.5  # standard deviation of the log of a response's length; 0: all have the same length
    solution_tokens: float = 0.0  # of the teacher's prompt beyond the student's; 0: a response and the template
    right_fraction: float = 0.4  # fraction of responses that the reward counts as correct
    shared_fraction: float = 0.0  # fraction of a response that is also the beginning of a sibling


@dataclass(frozen=True)
class Workload:
    """Work of one step, independent of how it is split over devices."""

    shape: ModelShape
    precision: str
    traffic: Traffic
    prompts: int
    group_size: int
    max_prompt_tokens: int
    max_response_tokens: int
    max_privileged_tokens: int
    tree_tokens: int
    engine_sequences: int
    engine_tokens: int
    kv_cache_gib: float  # of a CPU engine
    engine_memory_fraction: float  # of a GPU engine
    waits_on_publish: bool
    shows_solutions: bool
    support_forward: bool  # the learners run a forward for the support before scoring
    reference_forwards: int
    teacher_forwards: int
    teacher_copies: int
    teacher_batch_tokens: int
    zero_stage: int
    micro_batch_tokens: int
    checkpointing: bool
    bucket_mib: int
    adapters: int = 0  # LoRA parameters; 0 where all weights are trained
    averages: bool = False  # the teacher has weights of its own, which a checkpoint holds
    engines_sleep: bool = False  # engines sleep while the learners step
    tensor_parallel: int = 1  # number of processes of an engine, each with a device
    solution_source: str = "sibling"  # privileged.source
    offloads: bool = False  # the optimizer's state is in main memory
    moments_8bit: bool = False  # AdamW's moments are in 8 bits
    teacher_half: bool = False  # the teacher computes in bfloat16; an EMA is averaged in float32 beside it
    keeps_published: bool = False  # published weights stay on the learner's GPU, where all roles read them
    maps_weights: bool = True  # on one node without GPUs, published weights lie in shared memory

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.precision]

    @property
    def teacher_precision(self) -> str:
        """Precision of the teacher's products: of its copies in float32, TF32 is allowed beside a bfloat16 student."""
        if self.teacher_half:
            return "bfloat16"
        return "tf32" if self.precision == "bfloat16" else "float32"

    @property
    def teacher_bytes(self) -> int:
        """Bytes of a weight in the teacher's copies."""
        return ELEMENT_BYTES[self.teacher_precision]

    @property
    def with_single_device_engines(self) -> Workload:
        """Cache key for stages that do not depend on `tensor_parallel`: they are computed once for all sizes."""
        return replace(self, tensor_parallel=1)

    @property
    def samples(self) -> int:
        return self.prompts * self.group_size

    @property
    def trained(self) -> int:
        """Parameters that have a gradient and the optimizer's moments."""
        return self.adapters or self.shape.parameters

    @property
    def weights_bytes(self) -> int:
        """Bytes of the student's weights as engines hold and learners publish them."""
        return self.shape.parameters * self.element_bytes


@dataclass(frozen=True)
class Split:
    """Numbers of workers by role. `threads` are CPU cores of one worker; a GPU worker has one device, or with `shared`
    a fraction of one."""

    rollout: int
    teacher: int
    learner: int
    ahead: int = 0
    rollout_threads: int = 1
    teacher_threads: int = 1
    learner_threads: int = 1
    shared: bool = False  # the roles take turns on the same devices
    teacher_shards: int = 1  # teacher workers that share a copy of the weights
    alone: tuple[str, ...] = ()  # roles whose workers have a GPU each, although others share

    def label(self, tensor_parallel: int = 1) -> str:
        """`2 rollout TP-4, 8 teacher by 2, 4 learner, ahead 1`"""

        def workers(count: int, role: str, threads: int) -> str:
            return f"{count} {role}" + (f" x {threads} threads" if threads > 1 else "")

        width = f" TP-{tensor_parallel}" if tensor_parallel > 1 else ""
        roles = [workers(self.rollout, "rollout", self.rollout_threads) + width]
        if self.teacher:
            shards = f" by {self.teacher_shards}" if self.teacher_shards > 1 else ""
            roles.append(workers(self.teacher, "teacher", self.teacher_threads) + shards)
        return ", ".join([*roles, workers(self.learner, "learner", self.learner_threads), f"ahead {self.ahead}"])


def workload_of(config: Config, shape: ModelShape, traffic: Traffic) -> Workload:
    """Workload of one step of the configured run.

    Raises:
        ConfigError: LoRA on layers whose sizes the planner does not know.
    """
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    method = resolve_method(config)
    forwards = method.forwards
    if not traffic.response_tokens:
        traffic = replace(traffic, response_tokens=rollout.max_response_tokens / 2)
    if not traffic.solution_tokens:
        traffic = replace(traffic, solution_tokens=traffic.response_tokens + TEMPLATE_TOKENS)
    adapters = shape.adapters(config.model.lora_rank, config.model.lora_targets)
    if config.model.lora_rank and not adapters:
        raise ConfigError(
            f"model.lora_targets={config.model.lora_targets}: the planner knows the sizes of {', '.join(PROJECTIONS)}. "
            "Plan with some of these."
        )
    return Workload(
        shape=shape,
        precision=config.model.precision.value,
        traffic=traffic,
        prompts=rollout.prompts_per_step,
        group_size=rollout.group_size,
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_response_tokens=rollout.max_response_tokens,
        max_privileged_tokens=config.privileged.max_tokens,
        tree_tokens=config.model.tree_tokens,
        engine_sequences=rollout.max_batch_sequences,
        engine_tokens=rollout.max_batch_tokens,
        kv_cache_gib=rollout.kv_cache_gib,
        engine_memory_fraction=rollout.gpu_memory_fraction,
        waits_on_publish=rollout.on_publish is OnPublish.wait,
        shows_solutions=method.shows_solutions,
        solution_source=config.privileged.source.value,
        support_forward=forwards.support is SupportKind.student,
        reference_forwards=int(forwards.reference is not None),
        teacher_forwards={None: 0, WeightSource.trust_region: 2}.get(forwards.teacher, 1),
        teacher_copies=len(teacher_weights(method, config)),
        teacher_batch_tokens=teacher.batch_tokens,
        zero_stage=learner.zero_stage,
        micro_batch_tokens=learner.micro_batch_tokens,
        checkpointing=learner.activation_checkpointing,
        bucket_mib=config.weights.bucket_mib,
        adapters=adapters,
        averages=WeightSource.ema in teacher_weights(method, config),
        engines_sleep=rollout.sleep,
        tensor_parallel=rollout.tensor_parallel,
        offloads=learner.offload is Offload.optimizer,
        moments_8bit=learner.optimizer is Optimizer.adamw_8bit,
        teacher_half=teacher_precision(config) is Precision.bfloat16,
        keeps_published=config.weights.transport is Transport.ipc,
        maps_weights=config.weights.transport in (Transport.auto, Transport.shared_memory),
    )


def split_of(config: Config, workload: Workload) -> Split:
    """Split that the config requests. Roles share devices on CPU, and where a GPU is claimed in fractions."""
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    claims = {"rollout": rollout.gpus_per_worker, "learner": learner.gpus_per_worker}
    if workload.teacher_copies:
        claims["teacher"] = teacher.gpus_per_worker
    return Split(
        rollout=rollout.num_workers,
        teacher=teacher.num_workers if workload.teacher_copies else 0,
        learner=learner.num_workers,
        ahead=rollout.ahead,
        rollout_threads=1 if rollout.gpus_per_worker else rollout.threads,
        teacher_threads=1 if teacher.gpus_per_worker else teacher.threads,
        learner_threads=1 if learner.gpus_per_worker else learner.threads,
        shared=any(claim < 1 for claim in claims.values()),
        alone=tuple(role for role, claim in claims.items() if claim >= 1),
        teacher_shards=teacher.shards,
    )


def uses_gpus(config: Config) -> bool:
    return any(role.gpus_per_worker for role in (config.rollout, config.teacher, config.learner))


def workload_from_dict(values: Mapping[str, Any]) -> Workload:
    """Rebuild the workload from the dictionary that `dataclasses.asdict` made of it."""
    return Workload(**{**values, "shape": ModelShape(**values["shape"]), "traffic": Traffic(**values["traffic"])})
