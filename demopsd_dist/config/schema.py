"""Schema of the settings: each with its default, unit, legal range and meaning.

The sections of data, methods, worker roles, collapse alarm and recording are in the `*_settings.py` files beside this
one. A number without a range fails a test; checks that span several settings are in `cross_checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from demopsd_dist.config.collapse_settings import AlarmConfig
from demopsd_dist.config.data_settings import MINISCI, DataConfig
from demopsd_dist.config.method_settings import (
    DemoPSDConfig,
    GRPOConfig,
    MethodName,
    MixedConfig,
    OPSDConfig,
    OwnConfig,
    SDPOConfig,
)
from demopsd_dist.config.ranges import LARGEST, setting
from demopsd_dist.config.recording_settings import ProfileConfig, SamplesConfig, SinksConfig
from demopsd_dist.config.role_settings import LearnerConfig, Precision, RolloutConfig, TeacherConfig


class SystemRole(Enum):
    """Place of a question's system text in the chat."""

    template = "template"  # a message of its own, which the chat template must serve
    fold = "fold"  # at the start of the user's turn, before an empty line


@dataclass
class ModelConfig:
    path: str = MINISCI
    """A Hugging Face model folder with a tokenizer and chat template, or `minisci` for the embedded model."""
    precision: Precision = Precision.auto
    """`auto`, `float32` or `bfloat16`: number format in which engines and learners compute; the EMA, and the weights
    that the optimizer updates, stay in float32. `auto` takes bfloat16 for models from 50 million parameters on, where
    GPUs or CPU have matrix units for it; the run's log has the choice and its reason (docs/tuning.md)."""
    system_role: SystemRole = SystemRole.template
    """`template` gives the chat template a system message where a question has a system text; `fold` puts the text at
    the start of the user's turn, for templates without that role."""
    template_date: str | None = None
    """Date, YYYY-MM-DD, that a chat template shows as today's, in every prompt of the run. A template that shows the
    date is refused without it, any other with it (docs/models.md)."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values for variables of the chat template, such as `{enable_thinking: false}`; one that it never reads is
    refused, and null leaves out a value that a file has."""
    tree_tokens: int = setting(2048, at_least=0, unit="tokens")
    """Longest row into which teacher and learners merge the responses to one question by their common prefix, so that a
    prompt is computed once. 0 gives each response a row of its own. The result is the same."""
    lora_rank: int = setting(0, at_least=0)
    """Rank of the low-rank adapters to train instead of the weights (LoRA, by peft). 0 trains all weights. Adapters
    need a larger learner.learning_rate (docs/lora.md)."""
    lora_alpha: float = setting(32.0, above=0)
    """Scale of the adapters: their output is multiplied by lora_alpha / lora_rank."""
    lora_targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get an adapter, such as `q_proj`; empty for all except the head. Experts fused
    into one tensor get none."""


class SolutionSource(Enum):
    """Origin of the solution in the teacher's prompt."""

    sibling = "sibling"  # a correct response of the same group, as the paper has it
    dataset = "dataset"  # the record's own solution, as OPSD has it
    sibling_or_dataset = "sibling_or_dataset"  # the record's own where the group has no correct sibling
    sibling_and_dataset = "sibling_and_dataset"  # both, or the one that there is
    answer_only = "answer_only"  # control: the expected answer without any working
    other_question = "other_question"  # control: the solution of another question of the step

    @property
    def reads_data(self) -> bool:
        """True if solutions of the data set are needed."""
        return self not in (SolutionSource.sibling, SolutionSource.answer_only)

    @property
    def shows_siblings(self) -> bool:
        """True if a correct response of the group may be shown."""
        return self in (
            SolutionSource.sibling,
            SolutionSource.sibling_or_dataset,
            SolutionSource.sibling_and_dataset,
        )


@dataclass
class PrivilegedConfig:
    """Context that the teacher sees beyond the student's (arXiv 2607.02502, section 4.4)."""

    source: SolutionSource = SolutionSource.sibling
    """`sibling`, `dataset`, `sibling_or_dataset`, `sibling_and_dataset`, or as controls `answer_only` and
    `other_question`: solution that the teacher sees (docs/methods.md). A response for which it has none is not trained
    on."""
    template: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    """The teacher's question. Holds `{prompt}` and `{solution}` once each, and `{feedback}` at most once; no other text
    in it is special."""
    solution_template: str = "\n\nCorrect solution:\n\n{solution}"
    """Text inserted for `{solution}` of `template` where a solution exists, and nothing otherwise; holds `{solution}`
    once."""
    feedback_template: str = "\n\nFeedback on your earlier attempt:\n\n{feedback}"
    """Text inserted for `{feedback}` of `template` where feedback exists, and nothing otherwise; holds `{feedback}`
    once."""
    feedback: bool = False
    """Show the teacher the feedback that your own `reward` returned for the response. A response with feedback is then
    trained on even where no sibling is correct."""
    exclude_own_success: bool = True
    """Never show a rollout to the teacher as its own solution; with `source: sibling` the only correct response of a
    group is then not trained on."""
    max_tokens: int = setting(10240, above=0, unit="tokens")
    """Longest prompt of the teacher; the solution is cut from the right to fit, then the feedback. Of two solutions the
    second is cut first."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values that replace those of model.chat_template_kwargs in the teacher's prompts."""


class Transport(Enum):
    """Route of published weights from the first learner to the rollout workers and the teacher."""

    auto = "auto"  # shared_memory where all of them are on its node, else object_store
    shared_memory = "shared_memory"  # memory that all roles map for the length of the run
    object_store = "object_store"  # Ray's: across nodes
    ipc = "ipc"  # memory of the one GPU that all roles share (CUDA IPC)
    collective = "collective"  # one broadcast by a process group: NCCL between GPUs, gloo on CPU


@dataclass
class WeightsConfig:
    transport: Transport = Transport.auto
    """`auto`, `shared_memory`, `object_store`, `ipc` or `collective`; the run's log names the one that `auto` has
    chosen (docs/weights.md)."""
    bucket_mib: int = setting(64, above=0, unit="MiB")
    """Approximate size of the buckets into which published weights are packed."""
    max_logp_diff: float | None = setting(None, above=0, unit="nats")
    """Largest allowed difference between engine and learner in the log-probability of a token, measured on the
    canary prompt at every publish and on sampled tokens at every step. A larger one stops the run: the engine is not
    sampling from the weights just published. null takes the bound of model.precision (docs/weights.md)."""
    typical_logp_diff: float | None = setting(None, above=0, unit="nats")
    """Largest allowed median of those differences, over the tokens of the canary prompt or of a step: it finds errors
    that the bound of the largest difference leaves room for. null takes the bound of model.precision, or none where
    max_logp_diff is set."""


@dataclass
class EvaluationConfig:
    at_start: bool = True
    """Evaluate before the first step too."""
    every_steps: int = setting(0, at_least=0, unit="steps")
    """Interval of evaluations during training; 0 evaluates only before and after."""
    samples: int = setting(8, above=0)
    """Number of responses to each question: accuracy is mean@samples."""
    temperature: float = setting(1.0, at_least=0.01, at_most=2)
    """Sampling temperature of evaluation rollouts; the reported entropy is that of this distribution."""
    top_p: float = setting(1.0, at_least=1e-6, at_most=1)
    """Nucleus (top-p) of evaluation rollouts."""
    max_response_tokens: int | None = setting(None, above=0, unit="tokens")
    """Length at which a response is truncated; null is rollout.max_response_tokens."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values that replace those of model.chat_template_kwargs in the prompts of evaluations."""
    early_answer_samples: int = setting(0, at_least=0)
    """Number of responses to each question that begin as an answer does in the form of `reward`, such as `<answer>` or
    `####`, on the test questions and on as many training questions: they measure what the student knows without
    reasoning."""


@dataclass
class LeakageConfig:
    """Regular measurement of the mutual information between the shown solution and the distributions of teacher and
    target."""

    every_steps: int = setting(10, at_least=0, unit="steps")
    """Interval of measurements, the first at step 1; 0 never measures. Costs forwards of the teacher worker."""
    prompts: int = setting(4, above=0)
    """Number of responses to measure."""
    contexts: int = setting(4, at_least=2)
    """Largest number of solutions shown for each response: M of the estimate, which cannot exceed ln M."""


@dataclass
class DriftConfig:
    """Regular measurement of the student's distance to the initial model: KL(initial || student) on responses that the
    initial model sampled in the first step."""

    every_steps: int = setting(10, at_least=0, unit="steps")
    """Interval of measurements, with one more after the first step and after the last; 0 never measures. Costs a
    forward of the learners over these responses, and two before the first step."""
    responses: int = setting(8, above=0)
    """Number of responses to measure on, one a question of the first step."""


@dataclass
class CheckpointConfig:
    every_steps: int = setting(20, at_least=0, unit="steps")
    """Interval of checkpoints, with one more after the last step; 0 saves only when the run is stopped."""
    keep: int = setting(2, above=0)
    """Number of newest checkpoints to keep; older ones are deleted."""
    replayable: bool = False
    """Keep with each checkpoint, and with the start of the run, the whole batch of the next step and digests of
    everything computed from it, so that `demopsd replay` can repeat that step. Costs about as much time as a
    checkpoint."""


@dataclass
class Limits:
    """Time limits and retry limits."""

    start_s: float = setting(300.0, above=0, unit="seconds")
    """Time limit for starting the roles: cluster, engines, process groups."""
    call_s: float = setting(1800.0, above=0, unit="seconds")
    """Time limit of one call to a role: sampling, scoring, a step, a publish."""
    reward_s: float = setting(60.0, above=0, unit="seconds")
    """Time limit of your own `reward` for one response, and of the scorer of a gym task."""
    math_s: float = setting(3.0, above=0, unit="seconds")
    """Processor time that math-verify may take for one comparison (`reward=math`). An answer that takes longer counts
    as wrong, and `rollout/undecided` counts it."""
    silence_s: float = setting(120.0, above=0, unit="seconds")
    """Time without progress after which a rollout worker that has work counts as hung and is replaced."""
    stop_s: float = setting(25.0, above=0, unit="seconds")
    """Time limit for a run that is asked to stop: it finishes its step and saves, or drops the step."""
    attempts: int = setting(3, above=0)
    """Number of times a prompt is requested, each time from another or a new worker, before the run fails."""
    restarts: int = setting(3, at_least=0)
    """Number of times a worker, or learners and teacher, are restarted without progress in between."""


class RewardErrors(Enum):
    """Reaction to your own reward function raising, returning no valid reward, or exceeding limits.reward_s."""

    stop = "stop"  # the run ends and shows the sample
    drop = "drop"  # the response is left out of its group


class TruncatedReward(Enum):
    """Reward of a response that was cut at rollout.max_response_tokens."""

    keep = "keep"  # what the reward gives for its text
    zero = "zero"  # 0, so that it is no solution for the teacher either


@dataclass
class Config:
    name: str = "run"
    """Name of the run folder: letters, digits, `.`, `_` and `-`."""
    output_dir: str = "runs"
    """Folder in which run folders are created; an existing one is never overwritten."""
    steps: int = setting(100, at_least=0, unit="steps")
    """Number of optimizer steps; 0 only evaluates the model."""
    seed: int = setting(0, at_least=0, at_most=LARGEST)
    """Seed of everything random: data order, sampling, choice of the sibling."""
    deterministic: bool = False
    """Make every run and every resume the same bit for bit: fixed prompts for each rollout worker, and no scoring
    before all is sampled. Costs overlap; needs rollout.ahead=0."""
    ray_address: str | None = None
    """null starts Ray on this machine; `auto` or host:port joins a cluster, with the token of the environment or of
    ~/.ray/auth_token (docs/security.md)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodName = MethodName.demopsd
    """`demopsd`, `sdpo`, `opsd`, `grpo`, `mixed`, or the dotted path of your own objective, which is `own` with
    `own.objective`. The sections of the other methods have no effect; `mixed` reads `grpo` and `mixed.distillation`'s
    too."""
    reward: str = "answer"
    """Reward function of a response. It compares its last `<answer>` (`answer`), its last `\\boxed{}` (`boxed`), the
    letter stated in its last line (`letter`), its last number (`gsm8k`), the value of its last
    `<answer>` or box (`math`), or the first of `answer`, `boxed` and `letter` that is present (`auto`); or the dotted
    path of your own function."""
    reward_errors: RewardErrors = RewardErrors.stop
    """`stop` or `drop`: reaction to a response for which your own reward fails."""
    truncated_reward: TruncatedReward = TruncatedReward.keep
    """`keep` or `zero`: reward of a response that was cut at rollout.max_response_tokens, in training and evaluation.
    With `zero` a policy is not rewarded for never ending (docs/rewards.md)."""
    privileged: PrivilegedConfig = field(default_factory=PrivilegedConfig)
    demopsd: DemoPSDConfig = field(default_factory=DemoPSDConfig)
    sdpo: SDPOConfig = field(default_factory=SDPOConfig)
    opsd: OPSDConfig = field(default_factory=OPSDConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    mixed: MixedConfig = field(default_factory=MixedConfig)
    own: OwnConfig = field(default_factory=OwnConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    leakage: LeakageConfig = field(default_factory=LeakageConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    sinks: SinksConfig = field(default_factory=SinksConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    limits: Limits = field(default_factory=Limits)
