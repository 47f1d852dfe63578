"""Training runs with the real driver whose steps are timed: in a temporary folder and without evaluation."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Self

from rich.console import Console

from demopsd_dist.config import Config
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import Metrics, RunLog
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import RunState, Task
from launch._task import build_task, compose_run
from workers.actors import RayActors

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


class RunLogWithSteps(RunLog):
    """A run log that also holds the metrics of every step.

    Attributes:
        steps: metrics of each step that is not undone.
    """

    steps: list[Metrics]

    def __enter__(self) -> Self:
        self.steps = []
        super().__enter__()
        return self

    def write_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step and keep its metrics."""
        super().write_step(step, metrics)
        self.steps.append(self.totals.last)

    def roll_back(self, step: int) -> None:
        """Reset the log to its state after this step."""
        super().roll_back(step)
        del self.steps[step:]


class StepTimer(RunLogWithSteps):
    """A run log that also records when each step ended.

    Attributes:
        step_ends: seconds of the monotonic clock, one a step.
    """

    step_ends: list[float]

    def __enter__(self) -> Self:
        self.step_ends = []
        super().__enter__()
        return self

    def write_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step and its end."""
        super().write_step(step, metrics)
        self.step_ends.append(time.monotonic())


def task_of(config: Config) -> Task:
    """Questions, prompts and reward of a config."""
    return build_task(config, model_folder(config), load_data(config.data).questions)[0]


def train_timed(config: Config, roles: Roles, task: Task) -> StepTimer:
    """Train `config.steps` steps with the given roles, and return the log."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output_dir=folder)
        with StepTimer(RunFolder.create(config), config.steps, Console(file=StringIO())) as log:
            run = compose_run(config, roles, replace(task, test=[], ood=[]), log)
            asyncio.run(train_with_recovery(run, RunState(), "started"))
            run.ledger.close()
    return log


def train_on_real_engines(config: Config) -> StepTimer:
    """Train with the actors that `launch.train` would start. Ray must be running."""
    actors = RayActors(config, model_folder(config))
    try:
        return train_timed(config, asyncio.run(actors.start()), task_of(config))
    finally:
        actors.stop()
