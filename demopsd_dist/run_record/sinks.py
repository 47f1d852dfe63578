"""Metric sinks beside `metrics.jsonl`, as the settings `sinks.*` select them.

A sink gets the metrics of a step or an evaluation as numbers by name (`metric_glossary.py`). The package of a sink is
imported when the sink is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from demopsd_dist.config import Config, WandbMode, to_yaml
from demopsd_dist.config.precision_settings import is_installed
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.prometheus import Prometheus
from demopsd_dist.util.errors import ConfigError

Metrics = Mapping[str, float]


class Sink(Protocol):
    """A destination of metrics."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Write metrics of a step. A step may have several calls, and a rollback repeats steps."""
        ...

    def close(self) -> None: ...


def check_sinks(config: Config, is_installed: Callable[[str], bool] = is_installed) -> None:
    """Check that the packages of the selected sinks are installed.

    Raises:
        ConfigError: a package is missing; names the command that installs it.
    """
    sinks = config.sinks
    for key, module, package, value in (
        ("tensorboard", "tensorboard", "tensorboard", "true" if sinks.tensorboard else None),
        ("wandb", "wandb", "wandb", None if sinks.wandb is WandbMode.off else sinks.wandb.value),
        ("prometheus_port", "prometheus_client", "prometheus-client", sinks.prometheus_port),
    ):
        if value is not None and not is_installed(module):
            raise ConfigError(f"sinks.{key}={value} needs a package that is not installed: pip install {package}.")


def open_sinks(config: Config, folder: RunFolder) -> list[Sink]:
    """Open the sinks that the config selects."""
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

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run; offline it is a folder `wandb/` in the run folder, for `wandb sync`.

    Its id is the identity of the run, so that a resumed run goes on with it. The horizontal axis is the metric `step`:
    W&B's own counter only grows and would drop the steps that are repeated after a rollback.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        import wandb
        from omegaconf import OmegaConf

        settings = OmegaConf.to_container(OmegaConf.create(to_yaml(config)))
        assert isinstance(settings, dict)
        self._wandb = wandb
        self._run = wandb.init(
            project=config.sinks.wandb_project,
            name=folder.path.name,
            id=folder.identity,
            resume="allow",
            dir=str(folder.path),
            mode="online" if config.sinks.wandb is WandbMode.online else "offline",
            config={str(key): value for key, value in settings.items()},
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # waits for its process to write everything: the driver soon ends its child processes


def flatten_numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The numbers in a nested record by path: `{"mean": {"average": 0.4}}` becomes `{prefix/mean/average: 0.4}`."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flatten_numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}/{name}"] = float(value)
    return numbers
