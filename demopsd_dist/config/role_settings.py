"""Settings of the three worker roles: rollout, teacher and learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from demopsd_dist.config.ranges import setting


class Precision(Enum):
    """Number format of a computation."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class OnPublish(Enum):
    """Effect of a weight publish on responses that are still being sampled."""

    wait = "wait"  # the publish waits for them
    keep = "keep"  # they continue with the new weights; their keys and values are computed again


@dataclass
class RolloutConfig:
    num_workers: int = setting(1, above=0)
    """Number of vLLM engines."""
    min_workers: int | None = setting(None, at_least=1)
    """Fewest engines that suffice to start and to continue. If the cluster cannot place num_workers, the missing
    engines join as soon as it can. At most num_workers; null requires all."""
    cpus_per_worker: float = setting(1.0, above=0)
    """Ray CPUs of each engine process; a fraction lets roles that take turns share a core."""
    gpus_per_worker: float = setting(0, at_least=0, at_most=1)
    """GPUs of each engine process: 0 runs on CPU, 1 gives each a GPU of its own, a fraction shares a GPU with other
    roles. A fraction must be at least gpu_memory_fraction, unless engines `sleep`."""
    tensor_parallel: int = setting(1, above=0)
    """Number of processes of an engine, which split its weights on one node. A divisor of the model's attention heads,
    and a divisor or a multiple of its key-value heads. Each process claims cpus_per_worker and gpus_per_worker, and has
    `threads`."""
    nodes: str | None = None
    """Label of the cluster nodes to use: `key=value`, `key=!value` or `key=in(one,other)`; null uses any node
    (docs/nodes.md)."""
    threads: int = setting(1, above=0)
    """Torch threads of an engine on CPU."""
    prompts_per_step: int = setting(64, above=0)
    """Number of questions sampled for one optimizer step."""
    group_size: int = setting(8, above=0)
    """Number of responses to each question; at least 2 for grpo, and for distillation with
    privileged.exclude_own_success and no privileged.feedback."""
    temperature: float = setting(1.0, at_least=0.01, at_most=2)
    """Sampling temperature of training rollouts and of all log-probabilities in the loss; outside the range vLLM rounds
    or refuses it."""
    max_prompt_tokens: int = setting(2048, above=0, unit="tokens")
    """Longest prompt, chat template and system message included; questions with longer prompts are left out, counted
    and reported."""
    max_response_tokens: int = setting(16384, above=0, unit="tokens")
    """Length at which a response is truncated."""
    ahead: int = setting(0, at_least=0, unit="steps")
    """Number of steps whose rollouts are in flight beyond the one being learned: 0 is on-policy. Staleness never
    exceeds it."""
    late_group_s: float | None = setting(None, above=0, unit="seconds")
    """Time limit for the last tenth of a step's groups, from when nine tenths have arrived; later groups are dropped,
    and `rollout/groups` is the number that remain. null waits for all."""
    on_publish: OnPublish = OnPublish.wait
    """`wait` or `keep`: effect of a publish on responses still being sampled, which exist only with ahead > 0."""
    sleep: bool = False
    """Engines release the memory of a shared GPU while the learners step, and take it again at the next publish
    (vLLM's sleep mode). Needs `ahead=0`. A CPU engine pauses, but keeps its memory."""
    kv_cache_gib: float = setting(1.0, above=0, unit="GiB")
    """KV cache of each process of a CPU engine, in whole GiB."""
    gpu_memory_fraction: float = setting(0.85, at_least=0.01, at_most=1)
    """Fraction of its GPUs' memory that an engine takes."""
    max_batch_tokens: int = setting(32768, above=0, unit="tokens")
    """Largest number of tokens in one forward of an engine. A CPU engine does not split a prompt and needs at least
    max_prompt_tokens + max_response_tokens."""
    max_batch_sequences: int = setting(256, above=0)
    """Largest number of sequences that an engine decodes at once."""
    compile: bool | None = None
    """Compile the engine's forward: fused kernels on CPU, also CUDA graphs on GPUs. It takes minutes the first time on
    a machine. null compiles on GPUs alone."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Further options of vLLM by name, such as `{kv_cache_dtype: fp8}`: those that docs/tuning.md lists with their
    effect on the difference between engine and learner."""
    request_seeds: bool = True
    """Give each request of a step a seed of its own, so that its tokens depend neither on the worker nor on other
    requests. `false` draws from one generator of each engine: faster sampling, another sample each time. Not with
    `deterministic`. Evaluations have seeds in any case."""


class Payload(Enum):
    """Number format of the log-probabilities that the teacher worker sends."""

    float32 = "float32"
    # half the bytes; relative error at most 1/2048: 0.009 nats for a token of probability 1e-8
    float16 = "float16"


@dataclass
class TeacherConfig:
    num_workers: int = setting(1, above=0)
    """Number of teacher workers, which share the responses to score."""
    shards: int = setting(1, above=0)
    """Number of workers that share one copy of the weights (FSDP): each holds its part and gathers the layers one by
    one. With 1 each worker has a whole copy. A divisor of `num_workers`."""
    cpus_per_worker: float = setting(1.0, above=0)
    """Ray CPUs of each worker."""
    gpus_per_worker: float = setting(0, at_least=0, at_most=1)
    """GPUs of each worker: 0 runs on CPU, 1 gives each a GPU of its own, a fraction shares a GPU with other roles."""
    nodes: str | None = None
    """Label of the cluster nodes to use, as in `rollout.nodes`."""
    threads: int = setting(1, above=0)
    """Torch threads of a worker on CPU; may exceed `cpus_per_worker` where the roles take turns."""
    ema_rate: float = setting(0.05, at_least=0, at_most=1)
    """eta of `ema` weights: teacher = (1 - eta) teacher + eta student, once a step."""
    trust_region_rate: float = setting(0.05, at_least=0, at_most=1)
    """Weight of the `live` logits in the logits of `trust_region`."""
    precision: Precision = Precision.auto
    """`auto`, `float32` or `bfloat16`: number format in which the teacher computes; `auto` is the student's. An EMA is
    averaged in float32 all the same: bfloat16 adds a working copy of 2 bytes a parameter beside it."""
    batch_tokens: int = setting(16384, above=0, unit="tokens")
    """Largest number of padded tokens in one forward. A single longer row runs alone."""
    payload: Payload = Payload.float32
    """`float32` or `float16`: number format of the log-probabilities sent to the learners."""


class Schedule(Enum):
    """Learning rate after warm-up."""

    constant = "constant"  # stays at learning_rate
    linear = "linear"  # falls by the same amount every step
    cosine = "cosine"  # falls along half a cosine: slowly, fast, slowly


class Optimizer(Enum):
    """Optimizer of the student's weights."""

    adamw = "adamw"  # torch's, moments in float32
    adamw_8bit = "adamw_8bit"  # bitsandbytes', moments in 8 bits


class Offload(Enum):
    """Part of a rank's state that is held in main memory instead of its GPU's."""

    none = "none"
    optimizer = "optimizer"  # float32 weights, their gradients and AdamW's moments; the update runs on the CPU


@dataclass
class LearnerConfig:
    num_workers: int = setting(1, above=0)
    """Number of DeepSpeed data-parallel ranks."""
    cpus_per_worker: float = setting(1.0, above=0)
    """Ray CPUs of each rank."""
    gpus_per_worker: float = setting(0, at_least=0, at_most=1)
    """GPUs of each rank: 0 runs on CPU (gloo), 1 gives each a GPU of its own (nccl), a fraction shares a GPU with other
    roles and allows one rank only."""
    nodes: str | None = None
    """Label of the cluster nodes to use, as in `rollout.nodes`."""
    threads: int = setting(1, above=0)
    """Torch threads of a rank on CPU."""
    zero_stage: int = setting(2, at_least=0, at_most=3)
    """DeepSpeed ZeRO stage: 0, 1, 2 or 3."""
    optimizer: Optimizer = Optimizer.adamw
    """`adamw`, or `adamw_8bit`: the same with its two moments in 8 bits, by bitsandbytes (`make bitsandbytes`). They
    take 2 bytes a parameter instead of 8, and are rounded in every step, so that the result differs. Meant for GPUs: on
    CPU its update is slow."""
    learning_rate: float = setting(1e-6, above=0)
    """Learning rate of AdamW after warm-up."""
    warmup_steps: int = setting(10, at_least=0, unit="steps")
    """Length of the linear warm-up from 0."""
    schedule: Schedule = Schedule.constant
    """`constant`, `linear` or `cosine`: course of the learning rate after warm-up."""
    final_learning_rate_fraction: float = setting(0.0, at_least=0, at_most=1)
    """Fraction of learning_rate that `linear` and `cosine` reach at the last of `steps`."""
    weight_decay: float = setting(0.01, at_least=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = setting(1.0, above=0)
    """Norm to which larger gradients are scaled down."""
    micro_batch_tokens: int = setting(16384, above=0, unit="tokens")
    """Largest number of padded tokens in one forward and backward of a rank. A single longer row runs alone. Affects
    memory and time, not the result."""
    offload: Offload = Offload.none
    """`none` or `optimizer`: the float32 weights, gradients and moments of a GPU's rank are held in main memory, and
    updated there, by DeepSpeed. Frees 16 bytes a parameter of its share, for slower steps. Needs a GPU and zero_stage 1
    or more. Does not change the result beyond rounding."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and compute the rest again in the backward pass. Does not change the result:
    less memory for long sequences, for about a third more computation."""
