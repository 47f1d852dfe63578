"""Totals over the steps of a run: what log and summary need of them, in memory that does not grow with their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Metrics = Mapping[str, float]

SUMMARISED = {
    "active_fraction": "rollout/learned_fraction",
    "alpha_mean": "demopsd/alpha_mean",
    "disagreement_mean_nats": "demopsd/disagreement_mean_nats",
    "teacher_leakage_nats": "leakage/teacher_nats",
    "target_leakage_nats": "leakage/target_nats",
    "order_violated_fraction": "entropy/order_violated_fraction",
    **{
        f"{family}_{name}": f"leakage/{family}_{name}"
        for family in ("siblings", "answers")
        for name in ("teacher_nats", "target_nats", "contexts_mean")
    },
}
"""Metrics whose mean over the steps is in the summary: name in the summary -> name of the metric."""


class StepTotals:
    """Totals of the steps so far.

    Attributes:
        steps: number of steps.
        last: metrics of the last step; empty before the first.
        rewarded: True once a step had a mean reward above 0.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.last: Metrics = {}
        self.rewarded = False
        self._sums: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._samples = self._seconds = 0.0
        self._logp_diff_max: float | None = None

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a finished step."""
        self.steps += 1
        self.last = metrics
        self.rewarded = self.rewarded or bool(metrics.get("rollout/reward_mean"))
        self._samples += metrics["rollout/samples"]
        self._seconds += metrics["perf/step_s"]
        for key in SUMMARISED.values():
            if key in metrics:
                self._sums[key] = self._sums.get(key, 0) + metrics[key]
                self._counts[key] += 1
        difference = metrics.get("mismatch/logp_diff_max")
        if difference is not None:
            self._logp_diff_max = max(self._logp_diff_max or 0.0, difference)

    def summary(self) -> dict[str, float | None]:
        """Means of `SUMMARISED`, those that were measured, the largest mismatch (None if not measured) and samples per
        second; empty before the first step."""
        if not self.steps:
            return {}
        means = {name: self._sums[key] / self._counts[key] for name, key in SUMMARISED.items() if key in self._sums}
        return {**means, "logp_diff_max": self._logp_diff_max, "samples_per_s": self._samples / self._seconds}
