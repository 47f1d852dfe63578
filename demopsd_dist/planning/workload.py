"""What is to be done in a step and who does it: plain numbers, from a config, a model's shape and what is known or
assumed of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from demopsd_dist.config import Config, OnPublish, WeightSource
from demopsd_dist.methods import SupportKind, resolve_method, teacher_weights
from demopsd_dist.planning.model_shape import PROJECTIONS, ModelShape
from demopsd_dist.util.errors import ConfigError

ELEMENT_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Traffic:
    """What no config says. The defaults are assumptions, and a plan repeats them."""

    prompt_tokens: float = 200.0
    response_tokens: float = 0.0  # mean; 0 for half of what is allowed
    response_spread: float = 0.5  # deviation of a response's logarithm; 0 for all alike
    solution_tokens: float = (
        0.0  # what the teacher's prompt has beyond the student's; 0 for a response and the words around it
    )
    right_fraction: float = 0.4  # responses that the reward finds right
    shared_fraction: float = 0.0  # of a response: what it begins with as a sibling does


TEMPLATE_TOKENS = 16  # what the privileged template has beside prompt and solution


@dataclass(frozen=True)
class Workload:
    """One step's work, whoever does it."""

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
    support_forward: bool  # the learners run one before scoring
    reference_forwards: int
    teacher_forwards: int
    teacher_copies: int
    teacher_batch_tokens: int
    support_atoms: int  # log-probabilities at a token
    zero_stage: int
    micro_batch_tokens: int
    checkpointing: bool
    bucket_mib: int
    adapters: int = 0  # parameters of LoRA's; 0 where all weights are trained
    averages: bool = False  # the teacher has weights of its own, which a checkpoint holds
    engines_sleep: bool = False  # while the learners learn
    tensor_parallel: int = 1  # processes of an engine, each with a device

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.precision]

    @property
    def teacher_precision(self) -> str:
        """Its copies are in float32; beside a bfloat16 student the operands of its products may be rounded."""
        return "tf32" if self.precision == "bfloat16" else "float32"

    @property
    def of_narrow_engines(self) -> Workload:
        """The same for all but the engines, who alone care how many processes one has: computed once for all widths."""
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
        """Of the student's, as engines hold and learners publish them."""
        return self.shape.parameters * self.element_bytes


@dataclass(frozen=True)
class Split:
    """Who does it. `threads` are cores of one worker on CPU; on a GPU each worker has `gpus` of one."""

    rollout: int
    teacher: int
    learner: int
    ahead: int = 0
    rollout_threads: int = 1
    teacher_threads: int = 1
    learner_threads: int = 1
    shared: bool = False  # the roles take turns on the same devices
    teacher_shards: int = 1  # teacher workers that share a copy of the weights

    def told(self, tensor_parallel: int = 1) -> str:
        """`2 rollout TP-4, 8 teacher by 2, 4 learner, ahead 1`"""

        def role(count: int, name: str, threads: int) -> str:
            return f"{count} {name}" + (f" x {threads} threads" if threads > 1 else "")

        wide = f" TP-{tensor_parallel}" if tensor_parallel > 1 else ""
        parts = [role(self.rollout, "rollout", self.rollout_threads) + wide]
        if self.teacher:
            together = f" by {self.teacher_shards}" if self.teacher_shards > 1 else ""
            parts.append(role(self.teacher, "teacher", self.teacher_threads) + together)
        return ", ".join([*parts, role(self.learner, "learner", self.learner_threads), f"ahead {self.ahead}"])


def job_of(config: Config, shape: ModelShape, traffic: Traffic) -> Workload:
    """
    Raises:
        ConfigError: adapters beside layers whose sizes are not known.
    """
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    made = resolve_method(config)
    forwards = made.forwards
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
    atoms = {SupportKind.vocabulary: shape.vocabulary, SupportKind.sampled: 1}.get(
        forwards.support, (made.top_k or 0) + 1
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
        shows_solutions=made.shows_solutions,
        support_forward=forwards.support is SupportKind.student,
        reference_forwards=int(forwards.reference is not None),
        teacher_forwards={None: 0, WeightSource.trust_region: 2}.get(forwards.teacher, 1),
        teacher_copies=len(teacher_weights(config)),
        teacher_batch_tokens=teacher.batch_tokens,
        support_atoms=atoms,
        zero_stage=learner.zero_stage,
        micro_batch_tokens=learner.micro_batch_tokens,
        checkpointing=learner.activation_checkpointing,
        bucket_mib=config.weights.bucket_mib,
        adapters=adapters,
        averages=WeightSource.ema in teacher_weights(config),
        engines_sleep=rollout.sleep,
        tensor_parallel=rollout.tensor_parallel,
    )


def split_of(config: Config, job: Workload) -> Split:
    """The split that the config asks for. Roles share devices on CPU, and where a GPU is claimed in parts."""
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    parts = (rollout.gpus_per_worker, teacher.gpus_per_worker, learner.gpus_per_worker)
    return Split(
        rollout=rollout.num_workers,
        teacher=teacher.num_workers if job.teacher_copies else 0,
        learner=learner.num_workers,
        ahead=rollout.ahead,
        rollout_threads=rollout.threads,
        teacher_threads=teacher.threads,
        learner_threads=learner.threads,
        shared=any(part < 1 for part in parts),
        teacher_shards=teacher.shards,
    )


def on_gpus(config: Config) -> bool:
    return any(role.gpus_per_worker for role in (config.rollout, config.teacher, config.learner))


def job_from(values: Mapping[str, Any]) -> Workload:
    """The inverse of `asdict`."""
    return Workload(**{**values, "shape": ModelShape(**values["shape"]), "traffic": Traffic(**values["traffic"])})
