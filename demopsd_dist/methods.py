"""What each method asks of a run: which examples, which forwards, which loss. Nobody else looks at `config.method`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from demopsd_dist.config import Aggregation, Config, MethodName, SupportOf, Variant, WeightSource

if TYPE_CHECKING:
    from demopsd_dist import objective


class SupportKind(Enum):
    """The ids at which everybody gives log-probabilities; all other tokens share one tail."""

    student = auto()  # the student's top k: one more forward of the learners
    engine = auto()  # the same, as the rollout engine saw it while sampling
    reference = auto()  # the reference's top k, found where its forward is
    sampled = auto()  # the sampled token
    vocabulary = auto()  # all of them, and no tail


@dataclass(frozen=True)
class Forwards:
    """The forwards that a example costs beside the one that carries the gradient."""

    support: SupportKind
    reference: WeightSource | None = None  # the question alone, by the teacher worker
    teacher: WeightSource | None = None  # the question with a solution

    @property
    def weights(self) -> set[WeightSource]:
        """What the teacher worker must hold. Empty: the run needs no teacher worker."""
        asked = {weights for weights in (self.reference, self.teacher) if weights is not None}
        if WeightSource.trust_region in asked:
            asked = asked - {WeightSource.trust_region} | {WeightSource.frozen, WeightSource.live}
        return asked


@dataclass(frozen=True)
class MethodSpec:
    """A method, as the roles and the driver see it."""

    forwards: Forwards
    aggregation: Aggregation
    top_k: int | None = None  # of a support that is somebody's most likely tokens
    reference: WeightSource | None = None  # whose it is; `live` costs no forward, since the learners have it
    sampling_rounds: int = 1
    scaled_advantage: bool = True  # divided by the group's standard deviation

    @property
    def shows_solutions(self) -> bool:
        """It learns from a correct sibling that the teacher sees; else from how a reward compares with its group's."""
        return self.forwards.teacher is not None

    @property
    def silent_without_advantage(self) -> bool:
        """A response as good as the others of its group has no gradient: nobody need run it."""
        return not self.shows_solutions and self.reference is None

    @property
    def probe(self) -> Forwards:
        """For the leakage probe, which looks at other contexts than the learners do: there a reference is a forward."""
        return Forwards(self.forwards.support, self.reference, self.forwards.teacher)


_SUPPORTS = {
    SupportOf.learner: SupportKind.student,
    SupportOf.rollout: SupportKind.engine,
    SupportOf.reference: SupportKind.reference,
}


def resolve_method(config: Config) -> MethodSpec:
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
    section = {MethodName.demopsd: config.demopsd, MethodName.sdpo: config.sdpo, MethodName.opsd: config.opsd}[
        config.method
    ]
    support = SupportKind.vocabulary if section.top_k is None else _SUPPORTS[section.support]
    reference = config.demopsd.reference if config.method is MethodName.demopsd else None
    forward = None if reference is WeightSource.live else reference
    return MethodSpec(
        Forwards(support, forward, section.teacher), section.aggregation, top_k=section.top_k, reference=reference
    )


def teacher_weights(config: Config) -> set[WeightSource]:
    """All that the teacher worker must hold in this run."""
    made = resolve_method(config)
    probed = made.probe.weights if config.leakage.every_steps and made.shows_solutions else set()
    return made.forwards.weights | probed


def objective_of(config: Config) -> objective.DemoPSD | objective.SDPO | objective.OPSD | objective.GRPO:
    """The loss. torch is imported here and not above, so that a dry run does without."""
    from demopsd_dist.objective import GRPO, OPSD, SDPO, DemoPSD

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
            )
        case MethodName.sdpo:
            return SDPO(config.sdpo.divergence.value, config.sdpo.importance_clip)
        case MethodName.opsd:
            return OPSD(config.opsd.beta, config.opsd.term_clip, config.opsd.importance_clip)
        case MethodName.grpo:
            grpo = config.grpo
            own = 0.28 if grpo.variant is Variant.dapo else 0.2
            clip_high = own if grpo.clip_high is None else grpo.clip_high
            return GRPO(grpo.clip_low, clip_high, grpo.dual_clip, grpo.kl_coefficient)
