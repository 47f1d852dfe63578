"""The settings of the methods: what the student learns from, and how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class MethodName(Enum):
    """What the student learns from; each has a section of its own below."""

    demopsd = "demopsd"
    sdpo = "sdpo"
    opsd = "opsd"
    grpo = "grpo"


class WeightSource(Enum):
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


class SupportOf(Enum):
    """Whose most likely tokens are the support."""

    learner = "learner"  # the student's, by a forward of the learners before scoring, as the paper does
    rollout = "rollout"  # the student's, as the engine saw them while sampling
    reference = "reference"  # the reference's, found by the teacher worker


@dataclass
class DistillationConfig:
    """What the methods with a teacher have in common."""

    top_k: int | None = 100
    """Support: the student's most likely tokens, plus a tail bucket. null for the full vocabulary."""
    support: SupportOf = SupportOf.learner
    """`learner`, `rollout` or `reference`: whose most likely tokens those are."""
    teacher: WeightSource = WeightSource.ema
    """Weights of the teacher, which sees the privileged context."""
    aggregation: Aggregation = Aggregation.token_mean
    """What the loss is a mean of."""
    importance_clip: float = 2.0
    """Upper bound of the learner-to-rollout probability ratio of a token; >= 1."""


@dataclass
class DemoPSDConfig(DistillationConfig):
    """Reverse KL to the disagreement-gated barycenter of teacher and reference (arXiv 2607.02502)."""

    reference: WeightSource = WeightSource.ema
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
    teacher: WeightSource = WeightSource.frozen
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
