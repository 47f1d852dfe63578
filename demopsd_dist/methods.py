"""Methods: the examples, forwards and loss of each method. No other file of the library reads `config.method`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from demopsd_dist.config import Aggregation, Config, MethodName, SupportOf, Variant, WeightSource
from demopsd_dist.config.method_settings import DemoPSDConfig, MixedConfig, OwnConfig, TeacherMethodConfig
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from demopsd_dist import objective


class SupportKind(Enum):
    """Token ids at which all models give log-probabilities; all other tokens share one tail."""

    student = auto()  # the student's top k: one more forward of the learners
    engine = auto()  # the same ids, from the rollout engine while it samples
    reference = auto()  # the reference's top k, from the teacher worker's forward
    sampled = auto()  # the sampled token
    vocabulary = auto()  # the whole vocabulary, without a tail


@dataclass(frozen=True)
class Forwards:
    """Forwards that an example needs beside the forward that carries the gradient."""

    support: SupportKind
    reference: WeightSource | None = None  # the question alone, by the teacher worker
    teacher: WeightSource | None = None  # the question with a solution

    @property
    def weights(self) -> set[WeightSource]:
        """Weights that the teacher worker holds for these forwards. Empty if no teacher worker is needed."""
        sources = {weights for weights in (self.reference, self.teacher) if weights is not None}
        if WeightSource.trust_region in sources:
            sources = sources - {WeightSource.trust_region} | {WeightSource.frozen, WeightSource.live}
        return sources


@dataclass(frozen=True)
class MethodSpec:
    """A method as the driver and the roles need it: resolved once, at the start of a run."""

    forwards: Forwards
    aggregation: Aggregation
    top_k: int | None = None  # size of a support that is the most likely tokens of a model
    reference: WeightSource | None = None  # weights of the reference; `live` needs no forward of the teacher worker
    sampling_rounds: int = 1  # above 1, questions that it cannot learn from are replaced (DAPO's dynamic sampling)
    scaled_advantage: bool = True  # the advantage is divided by the group's standard deviation
    mix: MixedConfig | None = None  # of a loss with both terms

    @property
    def shows_solutions(self) -> bool:
        """True if the method learns from a teacher that sees a solution."""
        return self.forwards.teacher is not None

    @property
    def drops_zero_advantage(self) -> bool:
        """True if a response with advantage 0 has no gradient, so that its forwards can be skipped."""
        return not self.shows_solutions and self.reference is None

    @property
    def probe_forwards(self) -> Forwards:
        """Forwards of the leakage probe. Its contexts differ from the learners', so a live reference needs a forward of
        the teacher worker too."""
        return Forwards(self.forwards.support, self.reference, self.forwards.teacher)


_SUPPORTS = {
    SupportOf.learner: SupportKind.student,
    SupportOf.rollout: SupportKind.engine,
    SupportOf.reference: SupportKind.reference,
}


def resolve_method(config: Config) -> MethodSpec:
    """The method of a run, from its settings."""
    if config.method is MethodName.grpo:
        grpo = config.grpo
        initial = WeightSource.frozen if grpo.kl_coefficient else None
        aggregation, rounds = {
            Variant.grpo: (Aggregation.sequence_mean, 1),
            Variant.dr_grpo: (Aggregation.max_length, 1),
            Variant.dapo: (Aggregation.token_mean, 4),
        }[grpo.variant]
        return MethodSpec(
            Forwards(SupportKind.sampled, reference=initial),
            aggregation,
            reference=initial,
            sampling_rounds=rounds if grpo.sampling_rounds is None else grpo.sampling_rounds,
            scaled_advantage=grpo.variant is not Variant.dr_grpo,
        )
    if config.method is MethodName.mixed:
        policy, distilled = map(resolve_method, configs_of_terms(config))
        return replace(
            distilled,
            aggregation=config.mixed.aggregation,
            scaled_advantage=policy.scaled_advantage,
            mix=config.mixed,
        )
    section: TeacherMethodConfig = getattr(config, config.method.value)
    support = SupportKind.vocabulary if section.top_k is None else _SUPPORTS[section.support]
    reference = section.reference if isinstance(section, DemoPSDConfig | OwnConfig) else None
    forward = None if reference is WeightSource.live else reference
    return MethodSpec(
        Forwards(support, forward, section.teacher),
        section.aggregation,
        top_k=section.top_k,
        reference=reference,
        sampling_rounds=section.sampling_rounds,
    )


def configs_of_terms(config: Config) -> tuple[Config, Config]:
    """The settings of a mixed loss with the method of its policy gradient, and with that of its distillation."""
    return (
        replace(config, method=MethodName.grpo),
        replace(config, method=MethodName(config.mixed.distillation.value)),
    )


def check_engine_support(method: MethodSpec, vocabulary: int) -> None:
    """Check that the engine's support leaves a token to the tail. The other supports are cut to do so.

    Raises:
        ConfigError: `top_k` is not less than the model's vocabulary.
    """
    if method.forwards.support is SupportKind.engine and (method.top_k or 0) >= vocabulary:
        raise ConfigError(
            f"top_k={method.top_k} with support=rollout needs a vocabulary of more tokens, and the model's has "
            f"{vocabulary}: nothing would be left for the tail. Give top_k at most {vocabulary - 1}, or null for the "
            "whole vocabulary."
        )


def check_objective(config: Config) -> None:
    """Check a user's own objective on random tokens; the built-in ones need no check.

    Raises:
        ConfigError: it cannot be imported or made, or breaks the contract (`objective_contract.py`).
    """
    if config.method is MethodName.own:
        from demopsd_dist.own_objective import check_own_objective

        check_own_objective(config.own)


def teacher_weights(method: MethodSpec, config: Config) -> set[WeightSource]:
    """All weights that the teacher worker holds in a run, for training and for the leakage probe."""
    probed = method.probe_forwards.weights if config.leakage.every_steps and method.shows_solutions else set()
    return method.forwards.weights | probed


def scheduled_alpha_max(config: Config, step: int) -> float:
    """Upper bound of DemoPSD's gate at a training step from 1 on: linear from `alpha_max` to `alpha_max_final`."""
    first, last = config.demopsd.alpha_max, config.demopsd.alpha_max_final
    if last is None:
        return first
    return first + (last - first) * min((step - 1) / max(config.steps - 1, 1), 1.0)


def at_step(made: objective.Objective, config: Config, step: int) -> objective.Objective:
    """The objective at a training step, counted from 1: DemoPSD's with the bound of its gate there, others as is."""
    from demopsd_dist.objective import gated, with_gated

    inner = gated(made)
    return made if inner is None else with_gated(made, replace(inner, alpha_max=scheduled_alpha_max(config, step)))


def objective_of(config: Config) -> objective.Objective:
    """The loss of a method, made once a process. torch is imported here, so that a dry run does not need it.

    Raises:
        ConfigError: a user's own objective cannot be imported or made.
    """
    from demopsd_dist.objective import GRPO, OPSD, SDPO, DemoPSD, Mixed
    from demopsd_dist.own_objective import own_objective

    match config.method:
        case MethodName.demopsd:
            demopsd = config.demopsd
            return DemoPSD(
                alpha_max=demopsd.alpha_max,
                gate_sensitivity=demopsd.gate_sensitivity,
                floor=demopsd.floor,
                importance_clip=demopsd.importance_clip,
                gate=demopsd.gate.value,
                gate_threshold_nats=demopsd.gate_threshold_nats,
                mean_alpha=demopsd.mean_alpha,
                kl_budget_nats=demopsd.kl_budget_nats,
            )
        case MethodName.sdpo:
            return SDPO(config.sdpo.divergence.value, config.sdpo.importance_clip)
        case MethodName.opsd:
            return OPSD(config.opsd.beta, config.opsd.term_clip, config.opsd.importance_clip)
        case MethodName.grpo:
            grpo = config.grpo
            default_high = 0.28 if grpo.variant is Variant.dapo else 0.2
            clip_high = default_high if grpo.clip_high is None else grpo.clip_high
            return GRPO(
                clip_low=grpo.clip_low,
                clip_high=clip_high,
                dual_clip=grpo.dual_clip,
                kl_coefficient=grpo.kl_coefficient,
                importance_clip=grpo.importance_clip,
                clipped_ratio=grpo.clipped_ratio.value,
            )
        case MethodName.mixed:
            policy, distillation = map(objective_of, configs_of_terms(config))
            assert isinstance(policy, GRPO)
            assert isinstance(distillation, DemoPSD | SDPO)
            return Mixed(policy, distillation, config.mixed.entropy_weighting)
        case MethodName.own:
            return own_objective(config.own)
