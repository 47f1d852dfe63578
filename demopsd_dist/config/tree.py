"""The tree of settings. Every default and every meaning is here and nowhere else; ranges are in `checks.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

MINISCI = "minisci"
SPLIT = "split"


class Method(Enum):
    """What the student learns from; each has a section of its own below."""

    demopsd = "demopsd"
    sdpo = "sdpo"
    opsd = "opsd"
    grpo = "grpo"


class Weights(Enum):
    """Whose weights the teacher worker runs a forward with."""

    ema = "ema"  # the moving average
    live = "live"  # the student's own, as last published
    frozen = "frozen"  # the student's at the start of the run
    trust_region = "trust_region"  # logits of `frozen` moved towards those of `live`


class Gate(Enum):
    """How alpha follows from the disagreement d; all have the upper bound alpha_max."""

    tanh = "tanh"  # the paper's: alpha_max tanh(kappa d / 2)
    threshold = "threshold"  # alpha_max sigmoid(kappa (d - threshold)): named in the paper, defined here
    constant = "constant"  # alpha_max everywhere


class Aggregation(Enum):
    """What the loss is a mean of."""

    token_mean = "token_mean"  # all tokens of the batch count the same
    sequence_mean = "sequence_mean"  # all responses count the same
    max_length = "max_length"  # as token_mean, but divided by responses times rollout.max_response_tokens


class Variant(Enum):
    """Advantage and aggregation of GRPO."""

    grpo = "grpo"  # (r - mean) / std, sequence_mean
    dr_grpo = "dr_grpo"  # r - mean, max_length
    dapo = "dapo"  # (r - mean) / std, token_mean; clip_high 0.28; questions without signal are drawn again


class Divergence(Enum):
    """Of student and teacher."""

    forward_kl = "forward_kl"  # KL(teacher|student)
    jsd = "jsd"  # Jensen-Shannon
    reverse_kl = "reverse_kl"  # KL(student|teacher)


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


class Format(Enum):
    """What the records of a file or hub data set look like (docs/data.md)."""

    auto = "auto"  # each source by its first record
    records = "records"  # a question and its answer, under the names in data.fields
    sciknoweval = "sciknoweval"  # as published: question, choices, answerKey, type
    gpqa = "gpqa"  # as published: Question, Correct Answer, Incorrect Answer 1 to 3


class Duplicates(Enum):
    """What happens when questions of test or ood also stand in train."""

    report = "report"  # the log says how many
    drop = "drop"  # train does without them
    refuse = "refuse"  # the run does not start


@dataclass
class FieldNames:
    """What your own records call their fields; `a.b` is the field b inside a."""

    text: str | None = None
    """The question; null for `prompt` or `question`."""
    answer: str | None = None
    """The expected answer; null for `answer`."""
    field: str | None = None
    """The branch by which accuracy is reported; null for `field`, `domain` or `dataset`."""
    id: str | None = None
    """Unique in its source; null for `id` or `idx`, and where there is none the line or row."""
    system: str | None = None
    """The system message; null for `system`."""
    level: str | None = None
    """What data.only_levels looks at; null for `level`."""
    type: str | None = None
    """What data.only_types looks at; null for `type` or `kind`."""


@dataclass
class DataConfig:
    train: str = MINISCI
    """`minisci`, a .jsonl, .parquet or .csv file, or `hf:owner/name` (perhaps `hf:owner/name:subset@split`)."""
    test: str | None = MINISCI
    """The same, for evaluation in the domain; never trained on. null or `split` holds a part of train out."""
    ood: str | None = MINISCI
    """The same, for evaluation out of the distribution; null for none. Filters do not apply to it."""
    format: Format = Format.auto
    """`auto`, `records`, `sciknoweval` or `gpqa`: what the records of files and hub data sets look like."""
    fields: FieldNames = field(default_factory=FieldNames)
    """Names of the fields of your own records."""
    only_fields: list[str] = field(default_factory=list)
    """Take only these fields (`Physics`) for train and test; empty for all. Case does not count."""
    only_levels: list[str] = field(default_factory=list)
    """Take only these levels (`L3`); empty for all."""
    only_types: list[str] = field(default_factory=list)
    """Take only these types (`mcq-4-choices`); empty for all."""
    test_fraction: float = 0.1
    """Part of train held out where `test: split`; above 0 and below 1."""
    split_seed: int = 42
    """What is held out follows from it and from the questions' texts; >= 0."""
    duplicates: Duplicates = Duplicates.report
    """`report`, `drop` or `refuse`: questions of test or ood that also stand in train."""
    minisci_train_size: int = 4096
    """Questions drawn for training where `train: minisci`; > 0."""
    minisci_test_size: int = 192
    """Questions drawn for each of test and ood where they are `minisci`; > 0."""


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


@dataclass
class DistillationConfig:
    """What the methods with a teacher have in common."""

    top_k: int | None = 100
    """Support: the student's most likely tokens, plus a tail bucket. null for the full vocabulary."""
    teacher: Weights = Weights.ema
    """Weights of the teacher, which sees the privileged context."""
    aggregation: Aggregation = Aggregation.token_mean
    """What the loss is a mean of."""
    importance_clip: float = 2.0
    """Upper bound of the learner-to-rollout probability ratio of a token; >= 1."""


@dataclass
class DemoPSDConfig(DistillationConfig):
    """Reverse KL to the disagreement-gated barycenter of teacher and reference (arXiv 2607.02502)."""

    reference: Weights = Weights.ema
    """Weights of the reference, which does not see the privileged context. `live` is the learners' own forward."""
    gate: Gate = Gate.tanh
    """How alpha follows from the disagreement."""
    alpha_max: float = 0.15
    """Upper bound of the gate alpha; in [0, 1]."""
    gate_sensitivity: float = 50.0
    """kappa of the gate (the paper's beta); > 0."""
    gate_threshold_nats: float = 0.05
    """Disagreement at which `gate: threshold` is half open; >= 0."""
    floor: float = 1e-8
    """Least probability of an atom in teacher and reference; in (0, 0.01]."""


@dataclass
class SDPOConfig(DistillationConfig):
    """Self-distillation from the teacher itself (arXiv 2601.20802)."""

    divergence: Divergence = Divergence.jsd
    """The published code's default without feedback. DemoPSD's paper writes `reverse_kl`."""


@dataclass
class OPSDConfig(DistillationConfig):
    """Generalised Jensen-Shannon divergence to a fixed teacher over the whole vocabulary (OPSD)."""

    top_k: int | None = None
    """The whole vocabulary: the teacher then sends a value for every entry of it. A number has top-k plus tail."""
    teacher: Weights = Weights.frozen
    """Fixed, as its authors recommend."""
    beta: float = 0.5
    """0 is forward KL, 1 reverse KL, 0.5 Jensen-Shannon; in [0, 1]."""
    term_clip: float | None = None
    """Upper bound of one vocabulary entry's part of a token's loss, nats; > 0. null for none."""


@dataclass
class GRPOConfig:
    """Group-relative policy gradient; no teacher."""

    variant: Variant = Variant.grpo
    """Advantage and aggregation."""
    clip_low: float = 0.2
    """The probability ratio is clipped at 1 - clip_low; in [0, 1)."""
    clip_high: float | None = None
    """... and at 1 + clip_high; > 0. null is the variant's own: 0.28 for dapo, 0.2 for the others."""
    dual_clip: float = 3.0
    """Bound of the ratio where the advantage is negative; > 1."""
    kl_coefficient: float = 0.0
    """Of the KL to the initial model; >= 0. 0 spends no forward on it. DemoPSD's paper has 0.04 in its GRPO row."""
    sampling_rounds: int | None = None
    """Rounds of questions a step, at most, until `prompts_per_step` groups have rewards that differ; > 0. null is the
    variant's own: 4 for dapo, 1 for the others, which is no second round."""


@dataclass
class RolloutConfig:
    num_workers: int = 1
    """vLLM engines; > 0."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each; a fraction lets roles that take turns share a core."""
    gpus_per_worker: int = 0
    """0 runs on CPU; 1 on a GPU each."""
    threads: int = 1
    """torch threads of an engine on CPU; > 0."""
    prompts_per_step: int = 64
    """Questions sampled for one optimizer step; > 0."""
    group_size: int = 8
    """Responses a question; >= 2 where a rollout may not see itself."""
    temperature: float = 1.0
    """Of training rollouts and of all log-probabilities in the loss; >= 0.01, below which vLLM rounds it up."""
    max_prompt_tokens: int = 2048
    """Longer questions are left out, counted and reported; > 0."""
    max_response_tokens: int = 16384
    """Longer responses are truncated; > 0."""
    ahead: int = 0
    """Steps of rollouts in flight beyond the one being learned: 0 is on-policy; staleness never exceeds it."""
    kv_cache_gib: float = 1.0
    """KV cache of a CPU engine, GiB; > 0."""
    gpu_memory_fraction: float = 0.85
    """Share of its GPUs' memory that an engine takes; in (0, 1]."""
    max_batch_tokens: int = 32768
    """Tokens in one forward of an engine; > 0. A CPU engine takes prompts whole, so there at least
    max_prompt_tokens + max_response_tokens."""
    max_batch_sequences: int = 256
    """Sequences that an engine decodes at once; > 0."""


@dataclass
class TeacherConfig:
    cpus_per_worker: float = 1.0
    """Ray CPUs of the teacher worker."""
    gpus_per_worker: int = 0
    """0 runs on CPU; 1 on a GPU."""
    threads: int = 1
    """torch threads on CPU; > 0. May exceed `cpus_per_worker` where the roles take turns."""
    ema_rate: float = 0.05
    """eta of `ema` weights: teacher = (1 - eta) teacher + eta student, once a step; in [0, 1]."""
    trust_region_rate: float = 0.05
    """Share of `live` in the logits of `trust_region`; in [0, 1]."""
    batch_tokens: int = 16384
    """Padded tokens in one forward; > 0."""


@dataclass
class LearnerConfig:
    num_workers: int = 1
    """DeepSpeed data-parallel ranks; > 0."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each."""
    gpus_per_worker: int = 0
    """0 runs on CPU (gloo); 1 on a GPU each (nccl)."""
    threads: int = 1
    """torch threads a rank on CPU; > 0."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage: 0, 1, 2 or 3."""
    learning_rate: float = 1e-6
    """AdamW's, after warm-up; > 0."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0; >= 0."""
    weight_decay: float = 0.01
    """AdamW's; >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; > 0."""
    micro_batch_tokens: int = 16384
    """Padded tokens in one forward and backward of a rank; > 0. Does not change the result, only memory and time."""


@dataclass
class WeightsConfig:
    bucket_mib: int = 64
    """Weights travel in packed buckets of about this size, MiB; > 0."""
    max_logp_diff: float = 1e-3
    """Largest allowed difference between engine and learner in the log-probability of a sampled token, nats; > 0.
    More stops the run: the engine is not sampling from the weights just published. bfloat16 needs about 0.5."""


@dataclass
class EvaluationConfig:
    at_start: bool = True
    """Evaluate before the first step too."""
    every_steps: int = 0
    """Evaluate during training after this many steps; 0 for only before and after."""
    samples: int = 8
    """Responses a question: accuracy is mean@samples; > 0."""
    temperature: float = 1.0
    """Of evaluation rollouts; >= 0.01. The reported entropy is that of this distribution."""
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
class Limits:
    """Bounds of every wait, seconds; > 0."""

    start_s: float = 300.0
    """For the roles to start: cluster, engines, process groups."""
    call_s: float = 1800.0
    """For one call to a role: sampling, scoring, a step, a publish."""


@dataclass
class Config:
    name: str = "run"
    """Names the run folder."""
    output_dir: str = "runs"
    """Run folders are made in here; an existing one is never overwritten."""
    steps: int = 100
    """Optimizer steps; >= 0. 0 only evaluates the model."""
    seed: int = 0
    """Everything random follows from it: data order, sampling, choice of sibling."""
    ray_address: str | None = None
    """null starts Ray on this machine; `auto` or an address joins a cluster."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: Method = Method.demopsd
    """`demopsd`, `sdpo`, `opsd` or `grpo`; the sections of the others have no effect."""
    reward: str = "answer"
    """What marks a response. By its last `<answer>` (`answer`), its last `\\boxed{}` (`boxed`), the letter that its
    last line states (`letter`), the first of these that is there (`auto`); or the dotted path of your own function."""
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
    limits: Limits = field(default_factory=Limits)
