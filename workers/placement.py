"""Who runs where: settings to resource bundles. Pure, so that a dry run and the real start agree."""

from __future__ import annotations

from dataclasses import dataclass

from demopsd_dist.config import Config
from demopsd_dist.errors import ConfigError
from demopsd_dist.methods import held_weights


@dataclass(frozen=True)
class Bundle:
    """What one actor claims of the cluster."""

    role: str
    rank: int
    cpus: float
    gpus: float


def rollout_bundle(config: Config, rank: int) -> Bundle:
    return Bundle("rollout", rank, config.rollout.cpus_per_worker, config.rollout.gpus_per_worker)


def rollout_bundles(config: Config) -> list[Bundle]:
    return [rollout_bundle(config, rank) for rank in range(config.rollout.num_workers)]


def bundles(config: Config) -> list[Bundle]:
    """One bundle an actor."""
    return [*rollout_bundles(config), *core_bundles(config)]


def core_bundles(config: Config) -> list[Bundle]:
    """Those who stay for the whole run: teacher workers if the method has a teacher, and learner ranks."""
    teacher, learner = config.teacher, config.learner
    teachers = teacher.num_workers if held_weights(config) else 0  # a method without one pays for none
    return [
        *(Bundle("teacher", i, teacher.cpus_per_worker, teacher.gpus_per_worker) for i in range(teachers)),
        *(Bundle("learner", i, learner.cpus_per_worker, learner.gpus_per_worker) for i in range(learner.num_workers)),
    ]


def check_fits(config: Config, cpus: float, gpus: float, wanted: list[Bundle] | None = None) -> None:
    """Refuse at once what would wait for ever. `wanted` is what a training run needs at least, unless given.

    Raises:
        ConfigError: the bundles together need more CPUs or GPUs than there are.
    """
    if wanted is None:
        least = config.rollout.min_workers or config.rollout.num_workers
        wanted = [*rollout_bundles(config)[:least], *core_bundles(config)]
    for kind, unit, need, there in (
        ("cpus", "CPUs", sum(b.cpus for b in wanted), cpus),
        ("gpus", "GPUs", sum(b.gpus for b in wanted), gpus),
    ):
        if need > there + 1e-9:
            terms = " + ".join(
                f"{role}.num_workers={count} x {kind}_per_worker={share:g}"
                for role, count, share in _by_role(wanted, kind)
            )
            raise ConfigError(
                f"{terms} need {need:g} {unit}; there are {there:g}. Lower a role's num_workers or {kind}_per_worker"
                + (" (roles that take turns may share a core: fractions are allowed)." if kind == "cpus" else ".")
            )


def _by_role(wanted: list[Bundle], kind: str) -> list[tuple[str, int, float]]:
    roles = dict.fromkeys(bundle.role for bundle in wanted)
    return [
        (role, sum(b.role == role for b in wanted), next(getattr(b, kind) for b in wanted if b.role == role))
        for role in roles
    ]


def table(config: Config) -> str:
    """Who runs where, a line an actor."""
    lines = [f"  {b.role:<8} {b.rank}   {b.cpus:g} CPU   {b.gpus:g} GPU" for b in bundles(config)]
    return "\n".join(lines)


def summary_of_roles(config: Config) -> str:
    """`2 rollout, 1 teacher (ema), 2 learner (ZeRO-2)`"""
    weights = "+".join(sorted(weights.value for weights in held_weights(config)))
    parts = [f"{config.rollout.num_workers} rollout"]
    parts += [f"{config.teacher.num_workers} teacher ({weights})"] if weights else []
    return ", ".join([*parts, f"{config.learner.num_workers} learner (ZeRO-{config.learner.zero_stage})"])
