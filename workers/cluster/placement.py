"""Placement of roles: from settings to resource bundles. Pure, so that a dry run and the real start agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demopsd_dist.config import Config
from demopsd_dist.methods import resolve_method, teacher_weights
from demopsd_dist.util.errors import ConfigError


@dataclass(frozen=True)
class Bundle:
    """Resources of the cluster that one actor claims."""

    role: str
    rank: int
    cpus: float
    gpus: float
    nodes: str | None = None  # `key=value`, as in the settings; None is any node

    @property
    def label(self) -> dict[str, str]:
        """Node label in Ray's form."""
        return dict([self.nodes.split("=", 1)]) if self.nodes else {}


def has_label(labels: Mapping[str, str], nodes: str | None) -> bool:
    """Whether Ray would place a bundle with this `nodes` on a node with these labels.

    Example: `has_label({"role": "learn"}, "role=in(learn,spare)")` is True.
    """
    if nodes is None:
        return True
    key, value = nodes.split("=", 1)
    pattern = value.removeprefix("!")
    values = pattern[3:-1].split(",") if pattern.startswith("in(") else [pattern]
    return (labels.get(key) in values) is not value.startswith("!")


def rollout_bundle(config: Config, rank: int) -> Bundle:
    """Bundle of one rollout worker: all processes of its engine, so that they are placed on one node."""
    return _bundle(config, "rollout", rank)


def rollout_bundles(config: Config) -> list[Bundle]:
    """One bundle a rollout worker."""
    return [rollout_bundle(config, rank) for rank in range(config.rollout.num_workers)]


def bundles(config: Config) -> list[Bundle]:
    """One bundle an actor."""
    return [*rollout_bundles(config), *core_bundles(config)]


def core_bundles(config: Config) -> list[Bundle]:
    """Bundles that stay for the whole run: teacher workers if the method has a teacher, and learner ranks."""
    has_teacher = bool(teacher_weights(resolve_method(config), config))  # some methods run no forward of a teacher
    teachers = config.teacher.num_workers if has_teacher else 0
    return [
        *(_bundle(config, "teacher", i) for i in range(teachers)),
        *(_bundle(config, "learner", i) for i in range(config.learner.num_workers)),
    ]


def processes_per_worker(config: Config, role: str) -> int:
    """Processes of each worker of the role; each of them claims the role's CPUs and GPUs."""
    return config.rollout.tensor_parallel if role == "rollout" else 1


def _bundle(config: Config, role: str, rank: int) -> Bundle:
    settings, count = getattr(config, role), processes_per_worker(config, role)
    return Bundle(role, rank, settings.cpus_per_worker * count, settings.gpus_per_worker * count, settings.nodes)


def minimum_bundles(config: Config) -> list[Bundle]:
    """Bundles without which a training run does not begin."""
    workers = config.rollout.min_workers or config.rollout.num_workers
    return [*rollout_bundles(config)[:workers], *core_bundles(config)]


def check_fits(
    config: Config, cpus: float, gpus: float, wanted: list[Bundle] | None = None, where: str = "there"
) -> None:
    """Refuse a placement that could never be granted, with all that is missing: GPUs, then CPUs.

    Args:
        wanted: bundles to place; by default the minimum of a training run.
        where: name of the machine or nodes that have `cpus` and `gpus`, for the message.

    Raises:
        ConfigError: the bundles together need more CPUs or GPUs than there are.
    """
    if wanted is None:
        wanted = minimum_bundles(config)
    missing, shortfalls = [], []
    for kind, unit, need, available in (
        ("gpus", "GPUs", sum(b.gpus for b in wanted), gpus),
        ("cpus", "CPUs", sum(b.cpus for b in wanted), cpus),
    ):
        if need > available + 1e-9:
            terms = " + ".join(_term(config, kind, *claim) for claim in _by_role(wanted, kind))
            missing.append(kind)
            shortfalls.append(f"{terms} need {need:g} {unit}; {where} are {available:g}.")
    if missing:
        raise ConfigError(
            f"{' '.join(shortfalls)} Lower a role's num_workers or {' and '.join(f'{k}_per_worker' for k in missing)}"
            + (" (roles that take turns may share a core: fractions are allowed)." if "cpus" in missing else ".")
        )


def _term(config: Config, kind: str, role: str, count: int, share: float) -> str:
    """Text of a role's claim: `rollout.num_workers=2 x gpus_per_worker=1 x tensor_parallel=4`"""
    processes = processes_per_worker(config, role)
    parallel = f" x tensor_parallel={processes}" if processes > 1 else ""
    return f"{role}.num_workers={count} x {kind}_per_worker={share / processes:g}{parallel}"


def check_nodes(config: Config, nodes: Sequence[Mapping[str, Any]], wanted: list[Bundle] | None = None) -> None:
    """Run `check_fits` for all nodes of a cluster, and for the nodes of each label that a role requires.

    Args:
        nodes: as `ray.nodes()` lists them.

    Raises:
        ConfigError: as for `check_fits`; or no living node has a label.
    """
    wanted = minimum_bundles(config) if wanted is None else wanted
    alive = [node for node in nodes if node["Alive"]]
    for nodes_wanted in dict.fromkeys([None, *(bundle.nodes for bundle in wanted)]):
        fitting = [node["Resources"] for node in alive if has_label(node.get("Labels", {}), nodes_wanted)]
        labelled = [bundle for bundle in wanted if nodes_wanted in (None, bundle.nodes)]
        if nodes_wanted and not fitting:
            raise ConfigError(
                f"{labelled[0].role}.nodes={nodes_wanted}: no node of the cluster has that label. Start one with "
                "`ray start --labels` (docs/nodes.md), or drop it."
            )
        _refuse_wider_than_a_node(config, labelled, fitting)
        cpus, gpus = (sum(resources.get(kind, 0.0) for resources in fitting) for kind in ("CPU", "GPU"))
        check_fits(config, cpus, gpus, labelled, f"on nodes with {nodes_wanted}" if nodes_wanted else "there")


def _refuse_wider_than_a_node(config: Config, wanted: list[Bundle], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a worker that no single node can hold: an engine's processes are on one node together."""
    for kind, unit in (("CPU", "cpus"), ("GPU", "gpus")):
        largest = max((resources.get(kind, 0.0) for resources in nodes), default=0.0)
        for role, count, share in _by_role(wanted, unit):
            if share > largest + 1e-9:
                raise ConfigError(
                    f"{_term(config, unit, role, count, share)}: one worker needs {share:g} {kind}s on a node; no node "
                    f"has more than {largest:g}. Lower it."
                )


def _by_role(wanted: list[Bundle], kind: str) -> list[tuple[str, int, float]]:
    """Role, number of workers and claim of each."""
    roles = dict.fromkeys(bundle.role for bundle in wanted)
    return [
        (role, sum(b.role == role for b in wanted), next(getattr(b, kind) for b in wanted if b.role == role))
        for role in roles
    ]


def table(config: Config) -> str:
    """Table of all actors and their claims, a line an actor."""
    lines = [
        f"  {b.role:<8} {b.rank}   {b.cpus:g} CPU   {b.gpus:g} GPU" + f"   {b.nodes}" * bool(b.nodes)
        for b in bundles(config)
    ]
    return "\n".join(lines)


def summary_of_roles(config: Config) -> str:
    """Text of the roles: `2 rollout, 1 teacher (ema), 2 learner (ZeRO-2)`"""
    weights = "+".join(sorted(weights.value for weights in teacher_weights(resolve_method(config), config)))
    processes = config.rollout.tensor_parallel
    roles = [f"{config.rollout.num_workers} rollout" + (f" (TP-{processes})" if processes > 1 else "")]
    shared = f", {config.teacher.shards} a copy" if config.teacher.shards > 1 else ""
    roles += [f"{config.teacher.num_workers} teacher ({weights}{shared})"] if weights else []
    return ", ".join([*roles, f"{config.learner.num_workers} learner (ZeRO-{config.learner.zero_stage})"])
