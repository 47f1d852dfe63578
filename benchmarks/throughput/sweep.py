"""What a sweep of throughput runs: its points, and how many devices each stage of them has. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, load
from demopsd_dist.util.errors import ConfigError
from workers.cluster.placement import bundles, processes_per_worker

WITHOUT = ("evaluation.at_start=false", "evaluation.every_steps=0", "checkpoint.every_steps=0", "leakage.every_steps=0")
"""What not every step does, so that a few steps are like all. Words of the user go over these."""
ROLE_OF_STAGE = {"sample": "rollout", "support": "learner", "score": "teacher", "learn": "learner"}
STAGES = (*ROLE_OF_STAGE, "publish_weights")


@dataclass(frozen=True)
class Factor:
    """A setting that is swept. Where it counts the workers of a stage, an efficiency can be told."""

    name: str
    section: str
    field: str
    scales: str | None = None

    @property
    def key(self) -> str:
        return f"{self.section}.{self.field}"

    def of(self, config: Config) -> int:
        return getattr(getattr(config, self.section), self.field)


FACTORS = (
    Factor("rollout-workers", "rollout", "num_workers", scales="sample"),
    Factor("teacher-workers", "teacher", "num_workers", scales="score"),
    Factor("learners", "learner", "num_workers", scales="learn"),
    Factor("zero", "learner", "zero_stage"),
    Factor("prompts", "rollout", "prompts_per_step"),
    Factor("group-size", "rollout", "group_size"),
    Factor("response-tokens", "rollout", "max_response_tokens"),
    Factor("ahead", "rollout", "ahead"),
)
DEFAULT_SWEEP = {"rollout-workers": (1, 2), "zero": (0, 1, 2, 3)}
Settings = dict[str, int]  # by a factor's name


@dataclass(frozen=True)
class Point:
    config: Config
    settings: Settings
    label: str  # of the settings that the sweep varies


def numbers(text: str) -> tuple[int, ...]:
    """`1,2,4`. For argparse, which tells of a ValueError."""
    found = tuple(int(part) for part in text.split(","))
    return tuple(dict.fromkeys(found))


def points_of(
    config: Path, words: Sequence[str], sweep: Mapping[str, Sequence[int]], steps: int, product: bool
) -> list[Point]:
    """The points of a sweep: one factor at a time around the config's own settings, or all combinations.

    Raises:
        ConfigError: a point's settings are refused.
    """
    own = [*WITHOUT, *words, f"steps={steps}"]
    base = load(config, own)
    if product:
        combined = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    else:
        combined = [{name: value} for name, values in sweep.items() for value in values]
    points: dict[tuple[int, ...], Point] = {}
    for chosen in combined:
        settings = {factor.name: chosen.get(factor.name, factor.of(base)) for factor in FACTORS}
        if tuple(settings.values()) not in points:
            asked = [f"{factor.key}={settings[factor.name]}" for factor in FACTORS if factor.name in sweep]
            try:
                made = load(config, [*own, *asked])
            except ConfigError as error:
                raise ConfigError(f"{' '.join(asked)}: {error}") from None
            label = " ".join(f"{name}={settings[name]}" for name in sweep)
            points[tuple(settings.values())] = Point(made, settings, label)
    return list(points.values())


def devices(config: Config, cpus: float) -> dict[str, float]:
    """Devices of each stage and, as `all`, of the run: GPUs, or parts of them, that the role claims. Of a role on
    CPU the cores that its torch threads can keep busy, of those there are."""
    found = {}
    for stage, role in ROLE_OF_STAGE.items():
        found[stage] = _devices_of(config, role, cpus)
    claimed = sum(bundle.gpus for bundle in bundles(config))
    threads = sum(_devices_of(config, role, cpus) for role in ("rollout", "teacher", "learner"))
    return found | {"all": claimed or min(cpus, threads)}


def _devices_of(config: Config, role: str, cpus: float) -> float:
    settings = getattr(config, role)
    count = settings.num_workers * processes_per_worker(config, role)
    return float(count * settings.gpus_per_worker or min(cpus, count * settings.threads))


def device_name(config: Config, resources: Mapping[str, Any]) -> str:
    """`cpu`, or what Ray calls the cluster's GPUs, for the names of the files."""
    if not any(bundle.gpus for bundle in bundles(config)):
        return "cpu"
    kinds = sorted(key.partition(":")[2].lower() for key in resources if key.startswith("accelerator_type:"))
    return "-".join(kinds) or "gpu"
