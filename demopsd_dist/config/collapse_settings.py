"""Settings of the collapse alarm: allowed bands of metrics, and the reaction when a metric leaves its band."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from demopsd_dist.config.ranges import setting


class AlarmAction(Enum):
    """Reaction when a metric has left its band."""

    warn = "warn"  # a line in the log, repeated every after_steps steps
    stop = "stop"  # the run ends with exit code 3
    rollback = "rollback"  # the run returns to an earlier checkpoint with a smaller learning rate


@dataclass
class AlarmConfig:
    """Bands `[low, high]` of metrics, either end of which may be null; null is no band. Steps without the metric are
    skipped."""

    entropy_nats: list[float | None] | None = setting([0.005, None], at_least=0, unit="nats")
    """Band of `policy/entropy_nats`, the policy's entropy per token: low when it has collapsed on few answers."""
    response_tokens: list[float | None] | None = setting([2.0, None], at_least=0, unit="tokens")
    """Band of `rollout/response_tokens_mean`: low when the policy has stopped reasoning, high when it no longer
    ends."""
    repeated_fraction: list[float | None] | None = setting([None, 0.6], at_least=0)
    """Band of `rollout/repeated_fraction`, the share of runs of four tokens that a response has had before: high when
    responses go round in circles."""
    truncated_fraction: list[float | None] | None = setting([None, 0.9], at_least=0)
    """Band of `rollout/truncated_fraction`, the share of responses cut at rollout.max_response_tokens: high when the
    policy no longer ends its responses, which may then be rewarded and shown as solutions all the same
    (`truncated_reward`)."""
    grad_norm: list[float | None] | None = setting([None, 100.0], at_least=0)
    """Band of `learner/grad_norm`, before clipping."""
    logp_diff_nats: list[float | None] | None = setting(None, at_least=0, unit="nats")
    """Band of `mismatch/logp_diff_max`; weights.max_logp_diff is a separate bound, above which the run stops at
    once."""
    reward: list[float | None] | None = setting(None)
    """Band of `rollout/reward_mean`; rewards of your own may be any number."""
    after_steps: int = setting(3, above=0, unit="steps")
    """Number of steps in a row that a metric must be outside its band."""
    action: AlarmAction = AlarmAction.warn
    """`warn`, `stop` or `rollback`: reaction when a metric has left its band."""
    rollback_learning_rate_factor: float = setting(0.5, above=0, at_most=1)
    """Factor of the learning rate at each rollback."""
    max_rollbacks: int = setting(2, above=0)
    """Number of rollbacks after which the run stops."""
