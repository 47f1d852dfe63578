"""Where a run's figures go: `metrics.jsonl` always, and what `sinks` asks for beside it.

A sink takes the figures of a step or an evaluation as plain numbers under their names in `metrics.py`. What a sink
needs is imported when it is opened, so that nobody else pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from demopsd_dist.config import Config, WandbMode, to_yaml
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.prometheus import Prometheus
from demopsd_dist.util.errors import ConfigError

Figures = Mapping[str, float]


class Sink(Protocol):
    def write(self, step: int, figures: Figures) -> None:
        """What is known of a step, in one or several calls. A run that goes back to a checkpoint does steps again."""
        ...

    def close(self) -> None: ...


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def check_sinks(config: Config, there: Callable[[str], bool] = is_installed) -> None:
    """Before anything starts.

    Raises:
        ConfigError: a sink is asked for whose package is not installed; it names the command that does.
    """
    asked = config.sinks
    for key, module, package, value in (
        ("tensorboard", "tensorboard", "tensorboard", "true" if asked.tensorboard else None),
        ("wandb", "wandb", "wandb", None if asked.wandb is WandbMode.off else asked.wandb.value),
        ("prometheus_port", "prometheus_client", "prometheus-client", asked.prometheus_port),
    ):
        if value is not None and not there(module):
            raise ConfigError(f"sinks.{key}={value} needs a package that is not installed: pip install {package}.")


def open_sinks(config: Config, folder: RunFolder) -> list[Sink]:
    """Those that the config asks for beside `metrics.jsonl`."""
    sinks: list[Sink] = []
    if config.sinks.tensorboard:
        sinks.append(TensorBoard(folder))
    if config.sinks.wandb is not WandbMode.off:
        sinks.append(WeightsAndBiases(config, folder))
    if config.sinks.prometheus_port is not None:
        sinks.append(Prometheus(config.sinks.prometheus_host, config.sinks.prometheus_port, folder.path.name))
    return sinks


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir runs/`."""

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))

    def write(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of that service; offline it is a folder `wandb/` in the run folder, for `wandb sync`."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        import wandb
        from omegaconf import OmegaConf

        settings = OmegaConf.to_container(OmegaConf.create(to_yaml(config)))
        assert isinstance(settings, dict)
        self._wandb = wandb
        self._run = wandb.init(
            project=config.sinks.wandb_project,
            name=folder.path.name,
            dir=str(folder.path),
            mode="online" if config.sinks.wandb is WandbMode.online else "offline",
            config={str(key): value for key, value in settings.items()},
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )

    def write(self, step: int, figures: Figures) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # waits for its process to write what it has: ours are ended soon after


def numbers_of(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The numbers in a nested record, `{"mean": {"average": 0.4}}` as `{prefix/mean/average: 0.4}`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{name}"] = float(value)
    return found
