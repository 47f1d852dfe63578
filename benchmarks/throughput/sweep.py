"""Points of a throughput sweep, and the number of devices of each stage. Pure functions."""

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
"""Work that not every step does, turned off so that a few steps represent all. Words of the user override these."""
ROLE_OF_STAGE = {"sample": "rollout", "support": "learner", "score": "teacher", "learn": "learner"}
STAGES = (*ROLE_OF_STAGE, "publish_weights")


@dataclass(frozen=True)
class Factor:
    """A setting that a sweep varies.

    Attributes:
        scales: stage whose workers it counts, for which an efficiency is reported; None for other settings.
    """

    name: str
    section: str
    field: str
    scales: str | None = None

    @property
    def key(self) -> str:
        """The setting's key in the config."""
        return f"{self.section}.{self.field}"

    def value(self, config: Config) -> int:
        """The config's value of the setting."""
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
Settings = dict[str, int]
"""Values by the name of their factor."""


@dataclass(frozen=True)
class Point:
    """A point of a sweep. `label` names the settings that the sweep varies."""

    config: Config
    settings: Settings
    label: str


def parse_numbers(text: str) -> tuple[int, ...]:
    """Parse `1,2,4` without repeated numbers. For argparse, which reports a ValueError."""
    return tuple(dict.fromkeys(int(number) for number in text.split(",")))


def points_of(
    config: Path, words: Sequence[str], sweep: Mapping[str, Sequence[int]], steps: int, product: bool
) -> list[Point]:
    """The points of a sweep: one factor at a time around the config's own settings, or all combinations.

    Raises:
        ConfigError: a point's settings are refused.
    """
    base_words = [*WITHOUT, *words, f"steps={steps}"]
    base = load(config, base_words)
    if product:
        combined = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    else:
        combined = [{name: value} for name, values in sweep.items() for value in values]
    points: dict[tuple[int, ...], Point] = {}
    for chosen in combined:
        settings = {factor.name: chosen.get(factor.name, factor.value(base)) for factor in FACTORS}
        if tuple(settings.values()) not in points:
            words_of_point = [f"{factor.key}={settings[factor.name]}" for factor in FACTORS if factor.name in sweep]
            try:
                point_config = load(config, [*base_words, *words_of_point])
            except ConfigError as error:
                raise ConfigError(f"{' '.join(words_of_point)}: {error}") from None
            label = " ".join(f"{name}={settings[name]}" for name in sweep)
            points[tuple(settings.values())] = Point(point_config, settings, label)
    return list(points.values())


def devices(config: Config, cpus: float) -> dict[str, float]:
    """Devices of each stage and, as `all`, of the run: GPUs, or fractions of them, that the role claims. For a role on
    CPU: the cores that its torch threads can keep busy, at most the machine's."""
    by_stage = {stage: _devices_of(config, role, cpus) for stage, role in ROLE_OF_STAGE.items()}
    claimed = sum(bundle.gpus for bundle in bundles(config))
    threads = sum(_devices_of(config, role, cpus) for role in ("rollout", "teacher", "learner"))
    return by_stage | {"all": claimed or min(cpus, threads)}


def _devices_of(config: Config, role: str, cpus: float) -> float:
    settings = getattr(config, role)
    count = settings.num_workers * processes_per_worker(config, role)
    return float(count * settings.gpus_per_worker or min(cpus, count * settings.threads))


def device_name(config: Config, resources: Mapping[str, Any]) -> str:
    """Name of the device in file names: `cpu`, or Ray's name of the cluster's GPUs."""
    if not any(bundle.gpus for bundle in bundles(config)):
        return "cpu"
    kinds = sorted(key.partition(":")[2].lower() for key in resources if key.startswith("accelerator_type:"))
    return "-".join(kinds) or "gpu"
