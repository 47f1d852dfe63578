"""Live view of a run in the terminal: progress, time by stage, and a response of the last step.

It adapts to the width of the terminal. Control characters in a response are escaped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from demopsd_dist.run_record.samples import Row
from demopsd_dist.util.printable import escape_control_chars

STAGES = {
    "wait_for_rollouts": "rollouts",
    "learn": "learn",
    "publish_weights": "publish",
    "samples": "record samples",
    "checkpoint": "checkpoint",
}
"""Stages of the driver that do not overlap, with their names in the view; the rest of a step is `other`."""
_SIDE_BY_SIDE = 96  # columns from which times and response are side by side
_WITH_GROUPS = 72  # columns from which the bar's line has room for the share of groups
_TEXT_LINES = 3


class Progress:
    """State of the live view, which rich renders periodically."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.done = 0
        self.timed_steps = 0
        self.spent_s = 0.0
        self.stage_s: dict[str, float] = {}
        self.learned_groups: float | None = None  # fraction of the last step's groups with a signal
        self.row: Row | None = None
        self._since = time.monotonic()

    def add_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a finished step."""
        self.done = step
        self.timed_steps += 1
        self.spent_s += metrics.get("perf/step_s", 0.0)
        self.learned_groups = metrics.get("rollout/groups_learnable_fraction")
        for stage in STAGES:
            if (spent := metrics.get(f"time/{stage}_s")) is not None:
                self.stage_s[stage] = self.stage_s.get(stage, 0.0) + spent
        self._since = time.monotonic()

    def roll_back(self) -> None:
        """Reset the view to the state before step 1; the steps that remain are added again."""
        self.done, self.timed_steps, self.spent_s, self.stage_s, self.row = 0, 0, 0.0, {}, None
        self.learned_groups = None

    def show_sample(self, row: Row) -> None:
        """Show a response of the last step."""
        self.row = row

    @property
    def left_s(self) -> float:
        """Estimated seconds of the remaining steps, at the mean time of the finished steps."""
        return self.spent_s / max(self.timed_steps, 1) * (self.total_steps - self.done)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        parts: list[RenderableType] = [Rule(style="dim"), self._bar(width)]
        if width >= _SIDE_BY_SIDE and self.row is not None:
            beside = Table.grid(padding=(0, 3), expand=True)
            beside.add_column(ratio=2)
            beside.add_column(ratio=3)
            beside.add_row(self._times(), Group(*response_lines(self.row, (width - 3) * 3 // 5)))
            parts.append(beside)
        else:
            parts.append(self._times())
            if self.row is not None:
                parts += response_lines(self.row, width)
        yield Group(*parts)

    def _bar(self, width: int) -> RenderableType:
        since_s = time.monotonic() - self._since
        text = f"step {self.done}/{self.total_steps}"
        if 0 < self.done < self.total_steps:
            text += f"  {format_time(max(self.left_s - since_s, 0.0))} left"
        if self.learned_groups is not None and width >= _WITH_GROUPS:
            text += f"  learned from {self.learned_groups:.0%} of groups"
        if width < 40:
            return Text(text, overflow="ellipsis", no_wrap=True)
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_row(Text(text, style="bold"), ProgressBar(total=max(self.total_steps, 1), completed=self.done))
        return grid

    def _times(self) -> RenderableType:
        total_s = self.spent_s
        if not total_s:
            return Text("the first step is running", style="dim")
        spent = self.stage_s | {"other": max(total_s - sum(self.stage_s.values()), 0.0)}
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        for stage, seconds in spent.items():
            share = seconds / total_s
            grid.add_row(STAGES.get(stage, stage), ProgressBar(total=1.0, completed=share), f"{share:.0%}")
        return grid


def response_lines(row: Row, width: int) -> list[Text]:
    """A response with its question and reward, each in at most three lines of this width."""
    verdict = Text("right" if row["reward"] >= 0.5 else "wrong", style="green" if row["reward"] >= 0.5 else "red")
    head = Text.assemble(
        f"step {row['step']}  {escape_control_chars(row['field'], max_chars=40)}  ",
        verdict,
        f"  reward {row['reward']:.2g}",
        style="bold",
    )
    max_chars = max(width, 10) * _TEXT_LINES
    lines = [
        head,
        Text(escape_control_chars(row["question"], max_chars=max_chars), style="dim"),
        Text(escape_control_chars(row["response"], max_chars=max_chars)),
        Text(f"expected {escape_control_chars(row['expected'], max_chars=max_chars)}", style="dim"),
    ]
    for line in lines:
        line.overflow = "fold"
    return lines


def format_time(seconds: float) -> str:
    """Seconds as `1:05`, or as `2:03:04` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
