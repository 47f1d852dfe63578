"""The tree of settings. Every default and every meaning is here and in `alarm.py`, `data.py`, `methods.py` and
`recording.py`, and nowhere else; ranges are in `checks.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from demopsd_dist.config.collapse_settings import AlarmConfig
from demopsd_dist.config.data_settings import MINISCI, DataConfig
from demopsd_dist.config.method_settings import DemoPSDConfig, GRPOConfig, MethodName, OPSDConfig, SDPOConfig
from demopsd_dist.config.recording_settings import ProfileConfig, SamplesConfig, SinksConfig


class Precision(Enum):
    """Number format of weights and activations in the engines (the EMA copy and the optimizer stay in float32)."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class ModelConfig:
    path: str = MINISCI
    """A Hugging Face model folder with a tokenizer and chat template, or `minisci` for the embedded one."""
    precision: Precision = Precision.float32
    """`float32`, or `bfloat16` on GPUs."""
    tree_tokens: int = 2048
    """Teacher and learners merge the responses to one question with what they share into rows of at most so many
    tokens, so that a prompt is computed once; >= 0. 0 gives each response a row of its own. The result is the same."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank beside the weights, instead of the weights (LoRA, by peft); >= 0. 0 trains
    all weights. Adapters want a larger learner.learning_rate (docs/lora.md)."""
    lora_alpha: float = 32.0
    """What an adapter adds is multiplied by lora_alpha / lora_rank; > 0."""
    lora_targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get an adapter, such as `q_proj`; empty for all of them but the head. Experts
    that are fused into one tensor are none."""


class Payload(Enum):
    """Number format of the log-probabilities that the teacher worker sends."""

    float32 = "float32"
    float16 = "float16"  # half the bytes; off by at most 1/2048 of a value, 0.009 nats at the floor of 1e-8


@dataclass
class PrivilegedConfig:
    """What the teacher sees beyond the student (arXiv 2607.02502, section 4.4)."""

    template: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    """Holds `{prompt}` and `{solution}` once each, and `{feedback}` at most once; nothing else in it is special."""
    solution_template: str = "\n\nCorrect solution:\n\n{solution}"
    """What stands for `{solution}` above where there is one; holds `{solution}` once. Without one nothing does."""
    feedback_template: str = "\n\nFeedback on your earlier attempt:\n\n{feedback}"
    """The same for `{feedback}`."""
    feedback: bool = False
    """Show the teacher the feedback that your own `reward` gave to the response. A response with feedback is then
    learned from also where no sibling is right."""
    exclude_own_success: bool = True
    """A rollout never sees itself as the solution; a lone success in its group is then not learned from."""
    max_tokens: int = 10240
    """Bound of the teacher's prompt; the solution is cut from the right to fit, then the feedback. In tokens, > 0."""


class OnPublish(Enum):
    """What a publish does to responses that are still being sampled."""

    wait = "wait"  # it waits for them
    keep = "keep"  # they go on with the new weights, their keys and values computed anew


@dataclass
class RolloutConfig:
    num_workers: int = 1
    """vLLM engines; > 0."""
    min_workers: int | None = None
    """Start, and go on, with as few as these where the cluster has no room for more; those missing join when it has.
    In [1, num_workers]; null is num_workers."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each; a fraction lets roles that take turns share a core."""
    gpus_per_worker: float = 0
    """0 runs on CPU; 1 on a GPU each; a fraction shares a GPU with others, and is at least gpu_memory_fraction then,
    unless engines `sleep`."""
    tensor_parallel: int = 1
    """Processes of an engine, which share its weights between them on one node; > 0, a divisor of the model's attention
    heads, and a divisor or a multiple of those for keys and values. Each claims cpus_per_worker and gpus_per_worker,
    and has `threads`."""
    nodes: str | None = None
    """Only nodes of the cluster with this label, `key=value`, `key=!value` or `key=in(one,other)`; null is any
    (docs/nodes.md)."""
    threads: int = 1
    """torch threads of an engine on CPU; > 0."""
    prompts_per_step: int = 64
    """Questions sampled for one optimizer step; > 0."""
    group_size: int = 8
    """Responses a question; >= 2 where a rollout may not see itself."""
    temperature: float = 1.0
    """Of training rollouts and of all log-probabilities in the loss; in [0.01, 2],
    outside of which vLLM rounds or refuses."""
    max_prompt_tokens: int = 2048
    """Longer questions are left out, counted and reported; > 0."""
    max_response_tokens: int = 16384
    """Longer responses are truncated; > 0."""
    ahead: int = 0
    """Steps of rollouts in flight beyond the one being learned: 0 is on-policy; staleness never exceeds it."""
    late_group_s: float | None = None
    """Once nine tenths of a step's groups are there, the others have so many seconds; then they are dropped, counted
    by `rollout/groups`; > 0. null waits for all."""
    on_publish: OnPublish = OnPublish.wait
    """`wait` or `keep`: what a publish does to responses still being sampled, of which there are some if ahead > 0."""
    sleep: bool = False
    """Engines give the memory of a shared GPU back while the learners learn, and take it again at the next publish
    (vLLM's sleep mode); needs `ahead=0`. A CPU engine rests, and keeps its memory."""
    kv_cache_gib: float = 1.0
    """KV cache of a CPU engine, or of each of its processes, whole GiB; > 0."""
    gpu_memory_fraction: float = 0.85
    """Share of its GPUs' memory that an engine takes; in (0, 1]."""
    max_batch_tokens: int = 32768
    """Tokens in one forward of an engine; > 0. A CPU engine takes prompts whole, so there at least
    max_prompt_tokens + max_response_tokens."""
    max_batch_sequences: int = 256
    """Sequences that an engine decodes at once; > 0."""


@dataclass
class TeacherConfig:
    num_workers: int = 1
    """They share the responses to score; > 0."""
    shards: int = 1
    """How many of them share a copy of the weights (FSDP): each holds so small a part of it, and gathers the layers one
    by one. 1: each has a copy of its own. A divisor of `num_workers`."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each."""
    gpus_per_worker: float = 0
    """0 runs on CPU; 1 on a GPU each; a fraction shares a GPU with others."""
    nodes: str | None = None
    """As `rollout.nodes`."""
    threads: int = 1
    """torch threads on CPU; > 0. May exceed `cpus_per_worker` where the roles take turns."""
    ema_rate: float = 0.05
    """eta of `ema` weights: teacher = (1 - eta) teacher + eta student, once a step; in [0, 1]."""
    trust_region_rate: float = 0.05
    """Share of `live` in the logits of `trust_region`; in [0, 1]."""
    batch_tokens: int = 16384
    """Padded tokens in one forward; > 0."""
    payload: Payload = Payload.float32
    """`float32` or `float16`: the log-probabilities as they are sent."""


class Schedule(Enum):
    """The learning rate after warm-up."""

    constant = "constant"  # it stays
    linear = "linear"  # falls by the same amount every step
    cosine = "cosine"  # falls along half a cosine: slowly, fast, slowly


@dataclass
class LearnerConfig:
    num_workers: int = 1
    """DeepSpeed data-parallel ranks; > 0."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each."""
    gpus_per_worker: float = 0
    """0 runs on CPU (gloo); 1 on a GPU each (nccl); a fraction, of one rank alone, shares a GPU with other roles."""
    nodes: str | None = None
    """As `rollout.nodes`."""
    threads: int = 1
    """torch threads a rank on CPU; > 0."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage: 0, 1, 2 or 3."""
    learning_rate: float = 1e-6
    """AdamW's, after warm-up; > 0."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0; >= 0."""
    schedule: Schedule = Schedule.constant
    """After warm-up: `constant`, `linear` or `cosine`."""
    final_learning_rate_fraction: float = 0.0
    """Part of learning_rate that `linear` and `cosine` reach at the last of `steps`; in [0, 1]."""
    weight_decay: float = 0.01
    """AdamW's; >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; > 0."""
    micro_batch_tokens: int = 16384
    """Padded tokens in one forward and backward of a rank; > 0. Does not change the result, only memory and time."""
    activation_checkpointing: bool = False
    """Keep only what goes into each layer, and compute the rest again in the backward pass. Does not change the
    result: less memory for long sequences, for about a third more computation."""


class Transport(Enum):
    """How published weights get from the first learner to the rollout workers and the teacher."""

    auto = "auto"  # shared_memory where all of them are on its node, else object_store
    shared_memory = "shared_memory"  # memory that all keep mapped for the whole run
    object_store = "object_store"  # Ray's: across nodes


@dataclass
class WeightsConfig:
    transport: Transport = Transport.auto
    """`auto`, `shared_memory` or `object_store`; the run's log says which `auto` has chosen (docs/weights.md)."""
    bucket_mib: int = 64
    """Weights travel in packed buckets of about this size, MiB; > 0."""
    max_logp_diff: float = 1e-3
    """Largest allowed difference between engine and learner in the log-probability of a token, nats; > 0. Measured on
    a fixed probe at every publish, and on sampled tokens at every step. More stops the run: the engine is not sampling
    from the weights just published. bfloat16 needs about 0.5."""


@dataclass
class EvaluationConfig:
    at_start: bool = True
    """Evaluate before the first step too."""
    every_steps: int = 0
    """Evaluate during training after this many steps; 0 for only before and after."""
    samples: int = 8
    """Responses a question: accuracy is mean@samples; > 0."""
    temperature: float = 1.0
    """Of evaluation rollouts; in [0.01, 2]. The reported entropy is that of this distribution."""
    top_p: float = 1.0
    """Nucleus of evaluation rollouts; in (0, 1]."""
    max_response_tokens: int | None = None
    """Longer responses are truncated; > 0. null is rollout.max_response_tokens."""
    early_answer_samples: int = 0
    """Responses a question that are begun by `<answer>`, to test and to as many training questions: what the student
    knows without reasoning; >= 0. Only for models that answer in that form."""


@dataclass
class LeakageConfig:
    """Every so often: how much teacher and target tell about which solution was shown (mutual information)."""

    every_steps: int = 10
    """Measure at step 1 and then after so many steps; 0 for never. Costs forwards of the teacher worker."""
    prompts: int = 4
    """Responses to measure at; > 0."""
    contexts: int = 4
    """Solutions shown for each, at most: M of the estimate, which cannot exceed ln M; >= 2."""


@dataclass
class CheckpointConfig:
    every_steps: int = 20
    """Save after so many steps, and after the last; 0 saves only when the run is stopped."""
    keep: int = 2
    """How many are kept, the newest; > 0."""
    replayable: bool = False
    """Keep with each, and with the start of the run, the whole batch of the step after it and digests of all that was
    computed from it, so that `python -m launch.replay` can do that step again. Costs about a checkpoint's time."""


@dataclass
class Limits:
    """Bounds of every wait, and of every patience."""

    start_s: float = 300.0
    """For the roles to start: cluster, engines, process groups. Seconds, > 0."""
    call_s: float = 1800.0
    """For one call to a role: sampling, scoring, a step, a publish. Seconds, > 0."""
    reward_s: float = 60.0
    """For your own `reward` to mark one response. Seconds, > 0."""
    silence_s: float = 120.0
    """A rollout worker that has something to do and gets no further for so long hangs: it is replaced. Seconds, > 0."""
    stop_s: float = 25.0
    """For a run that is asked to stop: it finishes its step and saves, or drops the step. Seconds, > 0."""
    attempts: int = 3
    """How often a prompt is asked for, each time of another or a new worker, until the run gives up; > 0."""
    restarts: int = 3
    """How often a worker, or learners and teacher, are started again without getting further in between; >= 0."""


class RewardErrors(Enum):
    """What happens where your own reward raises, gives no mark, or takes longer than limits.reward_s."""

    stop = "stop"  # the run ends and shows the sample
    drop = "drop"  # the response is left out of its group


@dataclass
class Config:
    name: str = "run"
    """Names the run folder: letters, digits, `.`, `_` and `-`."""
    output_dir: str = "runs"
    """Run folders are made in here; an existing one is never overwritten."""
    steps: int = 100
    """Optimizer steps; >= 0. 0 only evaluates the model."""
    seed: int = 0
    """Everything random follows from it: data order, sampling, choice of sibling; from 0 to 2**32 - 1."""
    deterministic: bool = False
    """Bit for bit the same at every run and after every resume: fixed prompts for each rollout worker, nothing scored
    before all is sampled. Costs overlap; needs rollout.ahead=0."""
    ray_address: str | None = None
    """null starts Ray on this machine; `auto` or host:port joins a cluster, with the token that the environment or
    ~/.ray/auth_token has (docs/security.md)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodName = MethodName.demopsd
    """`demopsd`, `sdpo`, `opsd` or `grpo`; the sections of the others have no effect."""
    reward: str = "answer"
    """What marks a response. By its last `<answer>` (`answer`), its last `\\boxed{}` (`boxed`), the letter that its
    last line states (`letter`), the first of these that is there (`auto`); or the dotted path of your own function."""
    reward_errors: RewardErrors = RewardErrors.stop
    """`stop` or `drop`: what happens to a response that your own reward fails to mark."""
    privileged: PrivilegedConfig = field(default_factory=PrivilegedConfig)
    demopsd: DemoPSDConfig = field(default_factory=DemoPSDConfig)
    sdpo: SDPOConfig = field(default_factory=SDPOConfig)
    opsd: OPSDConfig = field(default_factory=OPSDConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    leakage: LeakageConfig = field(default_factory=LeakageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    sinks: SinksConfig = field(default_factory=SinksConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    limits: Limits = field(default_factory=Limits)
