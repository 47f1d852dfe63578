"""Detection of policy collapse: metrics that stay outside their bands (settings `alarm.*`). Pure.

Self-distillation can end the policy's exploration long before accuracy shows it: entropy falls towards 0, responses
shrink to a bare answer, repeat themselves or never end, gradients grow. None of these raises an error, so the metrics
are monitored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from demopsd_dist.config import AlarmAction, AlarmConfig
from demopsd_dist.data.records import Tokens

METRICS = {
    "entropy_nats": "policy/entropy_nats",
    "response_tokens": "rollout/response_tokens_mean",
    "repeated_fraction": "rollout/repeated_fraction",
    "truncated_fraction": "rollout/truncated_fraction",
    "grad_norm": "learner/grad_norm",
    "logp_diff_nats": "mismatch/logp_diff_max",
    "reward": "rollout/reward_mean",
}
"""The metric that each band in the settings is for."""
REPEATED_TOKENS = 4  # in a row


def repeated_fraction(tokens_T: Tokens) -> float:
    """Share of a response's runs of 4 tokens that have occurred in it before; 0 for one of fewer tokens.

    Example: a response that says the same 10 tokens six times has 57 runs, of which 47 are repeated: 0.82.
    """
    ids = tokens_T.tolist()
    runs = list(zip(*(ids[start:] for start in range(REPEATED_TOKENS)), strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class CollapseVerdict:
    """The action to take after a step, and why.

    Example: `CollapseVerdict(AlarmAction.stop, "alarm after step 12: policy/entropy_nats=0.001 is ...", since=10)`
    """

    action: AlarmAction
    message: str
    since: int  # the first of the steps with a metric outside its band


class CollapseMonitor:
    """Counts the consecutive steps that each metric is outside its band, and the rollbacks of the run.

    Example: `verdict = CollapseMonitor(cfg.alarm).check(state.step, metrics)`
    """

    def __init__(self, settings: AlarmConfig) -> None:
        self._settings = settings
        self._outside: dict[str, list[int]] = {}  # band -> consecutive steps outside it
        self.rollbacks = 0

    def check(self, step: int, metrics: Mapping[str, float]) -> CollapseVerdict | None:
        """The action to take after this step, None if every metric is fine. A warning or a rollback resets the
        counts."""
        settings = self._settings
        faults: list[str] = []
        since = step
        for name, metric in METRICS.items():
            band = getattr(settings, name)
            if band is None or metric not in metrics:
                continue
            side = _outside(metrics[metric], *band)
            steps = [*self._outside.get(name, []), step] if side else []
            self._outside[name] = steps
            if side and len(steps) >= settings.after_steps:
                since = min(since, steps[0])
                faults.append(
                    f"{metric}={metrics[metric]:.4g} is {side} alarm.{name}={_format_band(band)}, and has been out of "
                    f"it for {len(steps)} steps, from step {steps[0]} on"
                )
        if not faults:
            return None
        self._outside.clear()
        message = (
            f"alarm after step {step}: {'; '.join(faults)}. If that is healthy here, widen the band or set it to null."
        )
        if settings.action is not AlarmAction.rollback:
            return CollapseVerdict(settings.action, message, since)
        if self.rollbacks >= settings.max_rollbacks:
            return CollapseVerdict(
                AlarmAction.stop, f"{message} The run has gone back alarm.max_rollbacks={self.rollbacks} times.", since
            )
        self.rollbacks += 1
        return CollapseVerdict(AlarmAction.rollback, message, since)

    def go_back(self, step: int, rollbacks: int) -> None:
        """Forget the steps after this one, and count at least that many rollbacks."""
        self._outside = {name: [one for one in steps if one <= step] for name, steps in self._outside.items()}
        self.rollbacks = max(self.rollbacks, rollbacks)

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the configured learning rate, after the rollbacks so far."""
        return self._settings.rollback_learning_rate_factor**self.rollbacks


def _outside(value: float, low: float | None, high: float | None) -> str:
    """Side of the band that the value is on; empty if inside. NaN is outside of every band."""
    if low is not None and value < low:
        return "below"
    if high is not None and value > high:
        return "above"
    return "" if value == value else "outside"


def _format_band(band: list[float | None]) -> str:
    low, high = ("null" if bound is None else f"{bound:g}" for bound in band)
    return f"[{low}, {high}]"
