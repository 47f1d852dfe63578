"""What a run keeps of itself beside `metrics.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass
class SamplesConfig:
    """Some responses of a step with all that is known of their tokens, as `samples/step-000012.parquet`
    (docs/samples.md)."""

    every_steps: int = 1
    """Keep some at step 1 and then after so many steps; >= 0. 0 for never."""
    responses: int = 16
    """Of a step, drawn at random; > 0."""
    tokens: int = 2048
    """Of a response of which single tokens are told, from its start; > 0. Its text is always whole."""
    candidates: int = 5
    """Tokens told at each position with everyone's probabilities, the likeliest to anybody; > 0."""


class WandbMode(Enum):
    """Where Weights & Biases writes."""

    off = "off"
    offline = "offline"  # into the run folder, for `wandb sync` later
    online = "online"  # to its server as the run goes


@dataclass
class SinksConfig:
    """Where figures go beside `metrics.jsonl`, which is always written."""

    tensorboard: bool = False
    """Event files in the run folder's `tensorboard/`. Needs `pip install tensorboard`."""
    wandb: WandbMode = WandbMode.off
    """`off`, `offline` or `online`. Needs `pip install wandb`."""
    wandb_project: str = "demopsd-dist"
    """The project there."""
    prometheus_port: int | None = None
    """Serve the figures to Prometheus at this port; 0 takes a free one. Needs `pip install prometheus-client`."""
    prometheus_host: str = "127.0.0.1"
    """The interface; 0.0.0.0 lets other machines read."""
    report: bool = True
    """Write `report.html` into the run folder at the end."""


@dataclass
class ProfileConfig:
    """Which steps are told as a timeline of driver and workers, as `trace-step-000012.json` (docs/replay.md)."""

    steps: list[int] = field(default_factory=list)
    """The first is 1."""
