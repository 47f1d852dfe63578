"""Schema of an experiment's YAML file, and its reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from demopsd_dist.util.errors import ConfigError


@dataclass
class Arm:
    """Settings of one arm, over those of the experiment.

    Attributes:
        settings: overrides of the run's config.
        seeds: those of the experiment's seeds that the arm is run with; empty for all.
        alpha_max_is_mean_alpha_of: arm whose best tuning run's mean alpha is this arm's `demopsd.alpha_max`.
        learning_rate_of: arm whose learning rate this arm takes instead of tuning its own.
        learning_rate_times_one_minus_mean_alpha_of: arm whose mean alpha scales that rate by 1 - alpha.
    """

    settings: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    alpha_max_is_mean_alpha_of: str | None = None
    learning_rate_of: str | None = None
    learning_rate_times_one_minus_mean_alpha_of: str | None = None

    @property
    def references(self) -> list[str]:
        """Names of the arms that this arm refers to."""
        names = (
            self.alpha_max_is_mean_alpha_of,
            self.learning_rate_of,
            self.learning_rate_times_one_minus_mean_alpha_of,
        )
        return [name for name in names if name is not None]


@dataclass
class Tuning:
    """Seed, candidate learning rates and further settings of the tuning runs."""

    seed: int = 1000
    learning_rates: list[float] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)


@dataclass
class FinalRuns:
    """Further settings of the final runs."""

    settings: list[str] = field(default_factory=list)


@dataclass
class Experiment:
    """Arms that are tuned and then trained with every seed, over one base config.

    Attributes:
        base: config file, relative to the experiment's file.
        parallel: runs at the same time.
        compared_with: arm that is subtracted from the other arms.
        leaks_compared_with: arm, or `base`: a run leaks if its early-answer probe is more than `leak_margin` above
            that of this arm's run with the same seed.
        dose: alpha_max of the arms that differ in it alone, 0 for one without a gate; they have a table of their own.
        settings: overrides of all runs.
        seed_settings: further overrides of the final runs with a seed, the same for all its arms.
    """

    base: str = "../demo.yaml"
    seeds: list[int] = field(default_factory=list)
    parallel: int = 1
    compared_with: str = "demopsd"
    leaks_compared_with: str = "base"
    leak_margin: float = 0.05
    dose: dict[str, float] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    seed_settings: dict[int, list[str]] = field(default_factory=dict)
    tuning: Tuning = field(default_factory=Tuning)
    final: FinalRuns = field(default_factory=FinalRuns)
    arms: dict[str, Arm] = field(default_factory=dict)


def read_experiment(path: Path, words: Sequence[str]) -> Experiment:
    """Read an experiment's file, with overrides such as `seeds=[3,4,5]`.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or refers to an arm that it does not have.
    """
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Experiment), OmegaConf.load(path), OmegaConf.from_dotlist([*words])
        )
        experiment = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    assert isinstance(experiment, Experiment)
    for key, arms in (("compared_with", {*experiment.arms}), ("leaks_compared_with", {"base", *experiment.arms})):
        if (name := getattr(experiment, key)) not in arms:
            raise ConfigError(f"{path}: {key}={name} is not an arm: {', '.join(experiment.arms)}.")
    if unknown := [name for name in experiment.dose if name not in experiment.arms]:
        raise ConfigError(f"{path}: dose has {unknown[0]}, which is not an arm: {', '.join(experiment.arms)}.")
    for name, arm in experiment.arms.items():
        for other in arm.references:
            if other not in experiment.arms:
                raise ConfigError(f"{path}: arm {name} refers to {other}, which is not an arm.")
    return experiment
