"""Settings of the methods: demopsd, sdpo, opsd, grpo, mixed and a user's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from demopsd_dist.config.ranges import setting
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from demopsd_dist.config.schema import Config


class MethodName(Enum):
    """Training method; each has a section of its own below."""

    demopsd = "demopsd"
    sdpo = "sdpo"
    opsd = "opsd"
    grpo = "grpo"
    mixed = "mixed"  # grpo's policy gradient beside the distillation of demopsd or sdpo
    own = "own"  # a class of the user's


class WeightSource(Enum):
    """Weights that the teacher worker runs a forward with."""

    ema = "ema"  # exponential moving average of the student's
    live = "live"  # the student's, as last published
    frozen = "frozen"  # the student's at the start of the run
    trust_region = "trust_region"  # logits of `frozen` moved towards those of `live`


class Gate(Enum):
    """Gate alpha as a function of the disagreement d; all have the upper bound alpha_max."""

    tanh = "tanh"  # the paper's: alpha_max tanh(kappa d / 2)
    threshold = "threshold"  # alpha_max sigmoid(kappa (d - threshold)): named in the paper, defined here
    constant = "constant"  # alpha_max everywhere
    fitted = "fitted"  # tanh, with the kappa that gives each step the mean alpha mean_alpha
    budget = "budget"  # one alpha a response: the smallest that keeps the target within kl_budget_nats of the reference


class Aggregation(Enum):
    """Averaging of the loss."""

    token_mean = "token_mean"  # equal weight for all tokens of the batch
    sequence_mean = "sequence_mean"  # equal weight for all responses
    max_length = "max_length"  # as token_mean, but divided by responses times rollout.max_response_tokens


class Variant(Enum):
    """Advantage and aggregation of GRPO."""

    grpo = "grpo"  # (r - mean) / std, sequence_mean
    dr_grpo = "dr_grpo"  # r - mean, max_length
    dapo = "dapo"  # (r - mean) / std, token_mean; clip_high 0.28; questions without signal are drawn again


class ClippedRatio(Enum):
    """Probability ratio that GRPO clips."""

    # new over old probability, both the learner's; the learner-to-engine ratio is a truncated weight beside it
    learner = "learner"
    engine = "engine"  # the learner's new probability over the rollout engine's


class Divergence(Enum):
    """Divergence between student and teacher."""

    forward_kl = "forward_kl"  # KL(teacher|student)
    jsd = "jsd"  # Jensen-Shannon
    reverse_kl = "reverse_kl"  # KL(student|teacher)


class SupportOf(Enum):
    """Model whose most likely tokens are the support."""

    learner = "learner"  # the student's, by a forward of the learners before scoring, as the paper does
    rollout = "rollout"  # the student's, as the engine saw them while sampling
    reference = "reference"  # the reference's, computed by the teacher worker


@dataclass
class TeacherMethodConfig:
    """Settings common to the methods with a teacher, and to a user's own."""

    top_k: int | None = setting(100, above=0, unit="tokens")
    """Size of the support: the most likely tokens, plus a tail bucket. null for the full vocabulary."""
    support: SupportOf = SupportOf.learner
    """`learner`, `rollout` or `reference`: model whose most likely tokens are the support."""
    teacher: WeightSource = WeightSource.ema
    """`ema`, `live`, `frozen` or `trust_region`: weights of the teacher, which sees the privileged context."""
    aggregation: Aggregation = Aggregation.token_mean
    """`token_mean`, `sequence_mean` or `max_length`: averaging of the loss."""
    sampling_rounds: int = setting(1, above=0)
    """Largest number of sampling rounds in a step; fresh questions are sampled until `prompts_per_step` groups have a
    response with a privileged context. 1 has no second round."""


@dataclass
class DistillationConfig(TeacherMethodConfig):
    """Settings common to the built-in methods with a teacher."""

    importance_clip: float = setting(2.0, at_least=1)
    """Upper bound of the learner-to-engine probability ratio of a token."""


@dataclass
class DemoPSDConfig(DistillationConfig):
    """Reverse KL to the disagreement-gated barycenter of teacher and reference (arXiv 2607.02502)."""

    reference: WeightSource = WeightSource.ema
    """`ema`, `live` or `frozen`: weights of the reference, which does not see the privileged context. `live` is the
    learners' own forward."""
    gate: Gate = Gate.tanh
    """`tanh`, `threshold`, `constant`, `fitted` or `budget`: gate alpha as a function of the disagreement."""
    alpha_max: float = setting(0.15, at_least=0, at_most=1)
    """Upper bound of the gate alpha."""
    alpha_max_final: float | None = setting(None, at_least=0, at_most=1)
    """Upper bound of the gate alpha at the last step, with a linear schedule from alpha_max at the first; null for
    alpha_max in every step. With `gate: constant` it is beta-OPSD's schedule."""
    gate_sensitivity: float = setting(50.0, above=0)
    """kappa of the gate (the paper's beta)."""
    gate_threshold_nats: float = setting(0.05, at_least=0, unit="nats")
    """Disagreement at which `gate: threshold` is half open."""
    mean_alpha: float = setting(0.06, above=0, at_most=1)
    """Mean alpha of each step with `gate: fitted`, which then needs no gate_sensitivity; below alpha_max."""
    kl_budget_nats: float = setting(0.004, above=0, unit="nats")
    """Largest mean over a response of KL(target|reference) with `gate: budget`. A response that needs an alpha above
    alpha_max gets alpha_max, and exceeds the budget."""
    floor: float = setting(1e-8, at_least=1e-30, at_most=0.01)
    """Smallest probability of an atom in teacher and reference. With A > 101 atoms it is floor * 101 / A, so that the
    floors of a whole vocabulary do not add up."""


@dataclass
class SDPOConfig(DistillationConfig):
    """Self-distillation from the teacher itself (arXiv 2601.20802)."""

    divergence: Divergence = Divergence.jsd
    """`forward_kl`, `jsd` or `reverse_kl`: divergence between student and teacher. `jsd` is the default of the
    published code without feedback; DemoPSD's paper writes `reverse_kl`."""


@dataclass
class OPSDConfig(DistillationConfig):
    """Generalised Jensen-Shannon divergence to a fixed teacher over the whole vocabulary (OPSD)."""

    top_k: int | None = setting(None, above=0, unit="tokens")
    """Size of the support plus a tail bucket; null for the full vocabulary, for which the teacher sends a value of
    every token."""
    teacher: WeightSource = WeightSource.frozen
    """Weights of the teacher; `frozen`, as its authors recommend, is the student at the start of the run."""
    beta: float = setting(0.5, at_least=0, at_most=1)
    """Interpolation of the divergence: 0 is forward KL, 1 reverse KL, 0.5 Jensen-Shannon."""
    term_clip: float | None = setting(None, above=0, unit="nats")
    """Upper bound of one vocabulary entry's term in a token's loss, as in OPSD's published code; null for none."""


@dataclass
class GRPOConfig:
    """Group-relative policy gradient; no teacher."""

    variant: Variant = Variant.grpo
    """`grpo`, `dr_grpo` or `dapo`: advantage and aggregation."""
    clip_low: float = setting(0.2, at_least=0, at_most=1)
    """Lower clip of the probability ratio, at 1 - clip_low."""
    clip_high: float | None = setting(None, above=0)
    """Upper clip of the probability ratio, at 1 + clip_high; null is the variant's own: 0.28 for dapo, 0.2 for the
    others."""
    dual_clip: float = setting(3.0, at_least=1)
    """Upper bound of the ratio where the advantage is negative."""
    clipped_ratio: ClippedRatio = ClippedRatio.learner
    """`learner` or `engine`: probability ratio to clip. `learner`, as in TRL and verl, clips the learner's own ratio,
    which is 1 with one update for each batch, and weighs a token by its truncated learner-to-engine ratio; `engine`
    clips the learner-to-engine ratio itself."""
    importance_clip: float = setting(2.0, at_least=1)
    """Upper bound of the learner-to-engine ratio with `clipped_ratio: learner`."""
    kl_coefficient: float = setting(0.0, at_least=0)
    """Coefficient of the KL to the initial model; 0 spends no forward on it. DemoPSD's paper has 0.04 in its GRPO
    row."""
    sampling_rounds: int | None = setting(None, above=0)
    """Largest number of sampling rounds in a step; rounds are repeated until `prompts_per_step` groups have rewards
    that differ. null is the variant's own: 4 for dapo, 1 (no second round) for the others."""


class Distillation(Enum):
    """Distillation term of a mixed loss; its settings are those of the method's own section."""

    demopsd = "demopsd"
    sdpo = "sdpo"


class Routing(Enum):
    """Rule that gives a response to the terms of a mixed loss."""

    none = "none"  # both terms for every response
    success = "success"  # the policy gradient for right responses, distillation for wrong ones


@dataclass
class MixedConfig:
    """GRPO's policy gradient beside distillation from the teacher; the sections `grpo` and `sdpo` (or `demopsd`) have
    the settings of the terms."""

    distillation: Distillation = Distillation.sdpo
    """`demopsd` or `sdpo`: distillation term."""
    weight: float = setting(0.5, at_least=0, at_most=1)
    """Weight w of the distillation with `routing: none`; the policy gradient has 1 - w. A response without a
    privileged context has the policy gradient alone, with weight 1 - w."""
    routing: Routing = Routing.none
    """`none` or `success`: `success` gives right responses to the policy gradient and wrong ones to distillation,
    each with weight 1, as SRPO does; wrong ones without a privileged context have the policy gradient."""
    entropy_weighting: bool = False
    """Multiply a token's distillation by exp(-H) with H the teacher's entropy, so that an unsure teacher counts
    less."""
    aggregation: Aggregation = Aggregation.token_mean
    """`token_mean`, `sequence_mean` or `max_length`: averaging of both terms."""


@dataclass
class OwnConfig(TeacherMethodConfig):
    """A user's own objective with a teacher, such as `method=my_package.MyMethod` (docs/methods.md)."""

    objective: str | None = None
    """Dotted path of the class; `method=my_package.MyMethod` sets it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments that the class is made with, by name."""
    reference: WeightSource | None = None
    """`ema`, `live` or `frozen`: weights of the reference, which does not see the privileged context. null for an
    objective without one; `live` is the learners' own forward, which the objective sees as None."""


def check_methods(config: Config) -> None:
    """Check the sections of all methods, also of those not chosen: an error in any section is reported.

    Raises:
        ConfigError: several settings conflict, or one has no effect.
    """
    for name, without in {"sdpo": config.sdpo, "opsd": config.opsd, "own": config.own}.items():
        has_reference = isinstance(without, OwnConfig) and without.reference is not None
        if without.support is SupportOf.reference and not has_reference:
            raise ConfigError(
                f"{name}.support=reference: {name} runs no forward of a reference. Set it to learner or rollout."
            )
    _check_reference("demopsd", config.demopsd)
    _check_reference("own", config.own)
    demopsd = config.demopsd
    if demopsd.gate in (Gate.fitted, Gate.budget) and demopsd.reference is WeightSource.live:
        raise ConfigError(
            f"demopsd.gate={demopsd.gate.value} looks at a whole step or response before the student's forward, and "
            "demopsd.reference=live is that forward. Set demopsd.reference to ema or frozen."
        )
    final = demopsd.alpha_max if demopsd.alpha_max_final is None else demopsd.alpha_max_final
    key, bound = min(("alpha_max", demopsd.alpha_max), ("alpha_max_final", final), key=lambda pair: pair[1])
    if demopsd.gate is Gate.fitted and demopsd.mean_alpha >= bound:
        raise ConfigError(
            f"demopsd.mean_alpha={demopsd.mean_alpha:g} with demopsd.{key}={bound:g}: the mean "
            "of alpha is always below its upper bound. Set mean_alpha below alpha_max."
        )
    if config.method is MethodName.mixed:
        _check_mixed(config)
    if config.method is MethodName.own and "." not in (config.own.objective or ""):
        raise ConfigError(
            f"method=own with own.objective={config.own.objective or 'null'}: the dotted path of a class is needed. "
            "Set method=my_package.MyMethod."
        )


def _check_reference(name: str, section: DemoPSDConfig | OwnConfig) -> None:
    """Check the weights of a reference, and that a support comes from one that there is."""
    if section.support is SupportOf.reference and section.reference is WeightSource.live:
        raise ConfigError(
            f"{name}.support=reference with {name}.reference=live, which is the learner. Set {name}.support=learner."
        )
    if section.reference is WeightSource.trust_region:
        raise ConfigError(f"{name}.reference=trust_region: only a teacher can be that. Set it to ema, live or frozen.")


def _check_mixed(config: Config) -> None:
    """Check the terms of a mixed loss against each other, and that no setting is without effect."""
    name, mixed, grpo = config.mixed.distillation.value, config.mixed, config.grpo
    section = config.demopsd if mixed.distillation is Distillation.demopsd else config.sdpo
    if section.top_k is None:
        raise ConfigError(
            f"method=mixed with {name}.top_k=null: the policy gradient needs the sampled token apart from the others. "
            f"Set {name}.top_k, 100 say."
        )
    if grpo.kl_coefficient:
        raise ConfigError(
            f"method=mixed with grpo.kl_coefficient={grpo.kl_coefficient:g}: a mixed loss has no forward of the "
            "initial model. Set it to 0."
        )
    if grpo.sampling_rounds is not None:
        raise ConfigError(
            f"method=mixed with grpo.sampling_rounds={grpo.sampling_rounds}: a mixed loss reads "
            f"{name}.sampling_rounds. Set that."
        )
    if section.aggregation is not Aggregation.token_mean:
        raise ConfigError(
            f"method=mixed with {name}.aggregation={section.aggregation.value}: a mixed loss has one for both terms. "
            "Set mixed.aggregation."
        )
    if mixed.routing is Routing.success and mixed.weight != MixedConfig().weight:
        raise ConfigError(
            f"mixed.weight={mixed.weight:g} has no effect with mixed.routing=success, which gives each response to one "
            "term. Drop it, or set mixed.routing=none."
        )
