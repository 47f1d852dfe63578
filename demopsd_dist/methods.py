"""What each method asks of a run: which lessons, which forwards, which loss. Nobody else looks at `config.method`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from demopsd_dist.config import Aggregation, Config, Method, SupportOf, Variant, Weights

if TYPE_CHECKING:
    from demopsd_dist import objective


class Support(Enum):
    """The ids at which everybody gives log-probabilities; all other tokens share one tail."""

    student = auto()  # the student's top k: one more forward of the learners
    engine = auto()  # the same, as the rollout engine saw it while sampling
    reference = auto()  # the reference's top k, found where its forward is
    sampled = auto()  # the sampled token
    vocabulary = auto()  # all of them, and no tail


@dataclass(frozen=True)
class Forwards:
    """The forwards that a lesson costs beside the one that carries the gradient."""

    support: Support
    reference: Weights | None = None  # the question alone, by the teacher worker
    teacher: Weights | None = None  # the question with a solution

    @property
    def weights(self) -> set[Weights]:
        """What the teacher worker must hold. Empty: the run needs no teacher worker."""
        asked = {weights for weights in (self.reference, self.teacher) if weights is not None}
        if Weights.trust_region in asked:
            asked = asked - {Weights.trust_region} | {Weights.frozen, Weights.live}
        return asked


@dataclass(frozen=True)
class Recipe:
    """A method, as the roles and the driver see it."""

    forwards: Forwards
    aggregation: Aggregation
    top_k: int | None = None  # of a support that is somebody's most likely tokens
    reference: Weights | None = None  # whose it is; `live` costs no forward, since the learners have it
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
    SupportOf.learner: Support.student,
    SupportOf.rollout: Support.engine,
    SupportOf.reference: Support.reference,
}


def recipe(config: Config) -> Recipe:
    if config.method is Method.grpo:
        grpo = config.grpo
        initial = Weights.frozen if grpo.kl_coefficient else None
        aggregation, rounds = {
            Variant.grpo: (Aggregation.sequence_mean, 1),
            Variant.dr_grpo: (Aggregation.max_length, 1),
            Variant.dapo: (Aggregation.token_mean, 4),
        }[grpo.variant]
        return Recipe(
            Forwards(Support.sampled, reference=initial),
            aggregation,
            reference=initial,
            sampling_rounds=rounds if grpo.sampling_rounds is None else grpo.sampling_rounds,
            scaled_advantage=grpo.variant is not Variant.dr_grpo,
        )
    section = {Method.demopsd: config.demopsd, Method.sdpo: config.sdpo, Method.opsd: config.opsd}[config.method]
    support = Support.vocabulary if section.top_k is None else _SUPPORTS[section.support]
    reference = config.demopsd.reference if config.method is Method.demopsd else None
    forward = None if reference is Weights.live else reference
    return Recipe(
        Forwards(support, forward, section.teacher), section.aggregation, top_k=section.top_k, reference=reference
    )


def held_weights(config: Config) -> set[Weights]:
    """All that the teacher worker must hold in this run."""
    made = recipe(config)
    probed = made.probe.weights if config.leakage.every_steps and made.shows_solutions else set()
    return made.forwards.weights | probed


def objective_of(config: Config) -> objective.DemoPSD | objective.SDPO | objective.OPSD | objective.GRPO:
    """The loss. torch is imported here and not above, so that a dry run does without."""
    from demopsd_dist.objective import GRPO, OPSD, SDPO, DemoPSD

    match config.method:
        case Method.demopsd:
            demopsd = config.demopsd
            return DemoPSD(
                alpha_max=demopsd.alpha_max,
                gate_sensitivity=demopsd.gate_sensitivity,
                floor=demopsd.floor,
                importance_clip=demopsd.importance_clip,
                gate=demopsd.gate.value,
                gate_threshold_nats=demopsd.gate_threshold_nats,
            )
        case Method.sdpo:
            return SDPO(config.sdpo.divergence.value, config.sdpo.importance_clip)
        case Method.opsd:
            return OPSD(config.opsd.beta, config.opsd.term_clip, config.opsd.importance_clip)
        case Method.grpo:
            grpo = config.grpo
            own = 0.28 if grpo.variant is Variant.dapo else 0.2
            clip_high = own if grpo.clip_high is None else grpo.clip_high
            return GRPO(grpo.clip_low, clip_high, grpo.dual_clip, grpo.kl_coefficient)
