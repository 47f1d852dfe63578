"""The settings of the alarm: what the figures of a healthy run keep to, and what happens where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class AlarmAction(Enum):
    warn = "warn"  # a line in the log, again after as many steps more
    stop = "stop"  # the run ends with exit code 3
    rollback = "rollback"  # it goes back to a checkpoint from before, with a smaller learning rate


@dataclass
class AlarmConfig:
    """A band is `[low, high]`, either of which may be null; null is no band. Steps that lack a figure do not count."""

    entropy_nats: list[float | None] | None = field(default_factory=lambda: [0.005, None])
    """Of `policy/entropy_nats`, the policy's entropy a token: low where it has collapsed on few answers."""
    response_tokens: list[float | None] | None = field(default_factory=lambda: [2.0, None])
    """Of `rollout/response_tokens_mean`: low where it has stopped to reason, high where it no longer ends."""
    grad_norm: list[float | None] | None = field(default_factory=lambda: [None, 100.0])
    """Of `learner/grad_norm`, before it is clipped."""
    logp_diff_nats: list[float | None] | None = None
    """Of `mismatch/logp_diff_max`; weights.max_logp_diff, above which the run stops at once, is another bound."""
    reward: list[float | None] | None = None
    """Of `rollout/reward_mean`."""
    after_steps: int = 3
    """Steps in a row that a figure must be outside its band; > 0."""
    action: AlarmAction = AlarmAction.warn
    """`warn`, `stop` or `rollback`."""
    rollback_learning_rate_factor: float = 0.5
    """What the learning rate is multiplied by at each rollback; above 0, at most 1."""
    max_rollbacks: int = 2
    """After so many the run stops; > 0."""
