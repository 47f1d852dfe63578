"""Settings of the records that a run writes beside `metrics.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from demopsd_dist.config.ranges import setting


@dataclass
class SamplesConfig:
    """Sampled responses with per-token records, as `samples/step-000012.parquet` (docs/samples.md)."""

    every_steps: int = setting(1, at_least=0, unit="steps")
    """Interval of records, the first at step 1; 0 records none."""
    responses: int = setting(16, above=0)
    """Number of responses recorded in a step, drawn at random."""
    tokens: int = setting(2048, above=0, unit="tokens")
    """Number of tokens recorded one by one, from the start of a response. Its text is always complete."""
    candidates: int = setting(5, above=0)
    """Number of candidate tokens recorded at each position with their probabilities under every model: the tokens most
    likely under any model."""
    evaluation_questions: int = setting(32, at_least=0)
    """Number of test and of out-of-distribution questions whose responses are recorded at every evaluation: the first
    ones, so that evaluations can be compared; 0 records none."""


class WandbMode(Enum):
    """Destination of Weights & Biases."""

    off = "off"
    offline = "offline"  # into the run folder, for `wandb sync` later
    online = "online"  # to its server during the run


@dataclass
class SinksConfig:
    """Destinations of metrics beside `metrics.jsonl`, which is always written."""

    tensorboard: bool = False
    """Write event files into the run folder's `tensorboard/`. Needs `pip install tensorboard`."""
    wandb: WandbMode = WandbMode.off
    """`off`, `offline` or `online`: destination of Weights & Biases. Needs `pip install wandb`."""
    wandb_project: str = "demopsd-dist"
    """Project of Weights & Biases."""
    prometheus_port: int | None = setting(None, at_least=0, at_most=65535)
    """Port that serves the metrics to Prometheus; 0 takes a free one, null serves none. Needs
    `pip install prometheus-client`."""
    prometheus_host: str = "127.0.0.1"
    """Address of the interface that serves the metrics; 0.0.0.0 lets other machines read."""
    report: bool = True
    """Write `report.html` into the run folder at the end."""


@dataclass
class ProfileConfig:
    """Timelines of driver and workers, as `trace-step-000012.json` (docs/replay.md), and the peak that the use of the
    hardware is measured against."""

    steps: list[int] = setting([], at_least=1)
    """Steps to record; the first is 1."""
    operations: bool = False
    """Record the operations of torch in every worker too, of the steps in `steps`: their seconds, shapes and rates, as
    `operations-step-000012/` (docs/replay.md). It makes these steps slower."""
    peak_tflops: float | None = setting(None, above=0, unit="1e12 operations/s")
    """Peak of matrix products on one GPU or CPU thread, of which `perf/*_utilisation` are shares. null measures it at
    the start of the run, in each role's precision (under a second)."""
