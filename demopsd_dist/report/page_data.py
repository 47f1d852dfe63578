"""Data of the page's charts, tables and sample list, as numbers and texts for JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from demopsd_dist.report.read_run import RunFiles
from demopsd_dist.run_record import metric_glossary
from demopsd_dist.run_record.samples import Row
from demopsd_dist.util.printable import escape_control_chars

MAX_POINTS = 2000  # most points of the curve of a metric that each step has
SPARSE_POINTS = 500  # most points of one that some steps have
_PREVIEW_CHARACTERS = 160
_TOP_TOKENS = 24
_OWN_SETTINGS = {"name", "output_dir"}  # differ between any two runs


def run_data(run: RunFiles) -> dict[str, Any]:
    """Settings, metrics and evaluations of a run. Curves of a long run have evenly spaced steps and the last one;
    totals are those of all steps."""
    values: dict[str, list[float]] = defaultdict(list)
    at: dict[str, list[int]] = defaultdict(list)
    for index, step in enumerate(run.steps):
        for name, value in step.items():
            if name != "step" and _is_number(value):
                at[name].append(index)
                if math.isfinite(value):
                    values[name].append(float(value))
    every = -(-len(run.steps) // MAX_POINTS) or 1
    chosen = _chosen_steps(len(run.steps), every, at.values())
    steps = [run.steps[index] for index in chosen]
    return {
        "name": escape_control_chars(run.name, max_chars=80),
        "config": {key: setting_text(value) for key, value in run.config.items()},
        "summary": _tree(run.summary),
        "done": bool(run.summary),
        "every": every,
        "steps": len(run.steps),
        "totals": {name: _totals(numbers) for name, numbers in sorted(values.items()) if numbers},
        "step": [step["step"] for step in steps],
        "metrics": {name: [number(step.get(name)) for step in steps] for name in sorted(at)},
        "evaluations": [_evaluation(line) for line in run.evaluations],
    }


def _chosen_steps(steps: int, every: int, at: Iterable[Sequence[int]]) -> list[int]:
    """Indices of the steps that are shown: every so many, the last, and those of metrics that only some steps have.

    Args:
        at: indices of the steps that have each metric.
    """
    chosen = {*range(0, steps, every), *range(steps - 1, steps)} - {-1}
    for indices in at:
        if len(indices) < min(steps, SPARSE_POINTS * every):
            chosen.update(indices[:: -(-len(indices) // SPARSE_POINTS)])
    return sorted(chosen)


def _totals(numbers: Sequence[float]) -> dict[str, float | int | None]:
    """Sum, extremes, last value and number of the values of a metric."""
    reduced = {"sum": sum(numbers), "min": min(numbers), "max": max(numbers), "last": numbers[-1]}
    return {name: number(value) for name, value in reduced.items()} | {"count": len(numbers)}


def meanings(runs: Iterable[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Unit and meaning of every metric that occurs in a run."""
    names = {name for run in runs for name in run["metrics"]}
    metrics = {name: metric_glossary.find_metric(name) for name in sorted(names)}
    return {name: {"unit": metric.unit, "meaning": metric.meaning} for name, metric in metrics.items() if metric}


def differences(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Settings and commits that differ between the runs; names of runs and folders come last."""
    tables = [run.config | {f"({key})": run.summary[key] for key in ("commit",) if key in run.summary} for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [{"key": key, "values": [setting_text(table.get(key, "–")) for table in tables]} for key in keys]
    differing = [row for row in rows if len(set(row["values"])) > 1]
    return sorted(differing, key=lambda row: row["key"] in _OWN_SETTINGS)


def index_entry(row: Row) -> dict[str, Any]:
    """Entry of the sample list: its texts, and the values to filter and sort by."""

    def statistic(name: str, reduce: Any) -> float | None:
        values = row[name]
        return number(reduce(values)) if values else None

    return {
        "step": row["step"],
        "prompt": escape_control_chars(row["prompt_id"], max_chars=_PREVIEW_CHARACTERS),
        "sample": row["sample"],
        "field": escape_control_chars(row["field"], max_chars=40),
        "expected": escape_control_chars(row["expected"], max_chars=_PREVIEW_CHARACTERS),
        "question": escape_control_chars(row["question"][: 2 * _PREVIEW_CHARACTERS], max_chars=_PREVIEW_CHARACTERS),
        "response": escape_control_chars(row["response"][: 2 * _PREVIEW_CHARACTERS], max_chars=_PREVIEW_CHARACTERS),
        "reward": number(row["reward"]),
        "truncated": row["truncated"],
        "learned": row["learned"],
        "source": row.get("solution_source"),
        "worker": row["worker"],
        "tokens": len(row["token_ids"]),
        "alpha": statistic("alpha", np.mean),
        "disagreement": statistic("disagreement", np.mean),
        "peak": statistic("disagreement", np.max),
        "entropy": statistic("entropy", np.mean),
    }


class DisagreementByToken:
    """Sums of disagreement and alpha by token text, over all samples."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, row: Row) -> None:
        if row["disagreement"] is None:
            return
        for text, d, alpha in zip(row["token_texts"], row["disagreement"], row["alpha"], strict=True):
            sums = self._sums[text]
            sums[0] += 1
            sums[1] += d
            sums[2] += alpha

    def top_tokens(self) -> list[dict[str, Any]]:
        """Tokens with the largest shares of the total disagreement."""
        total = sum(sums[1] for sums in self._sums.values()) or 1.0
        ranked = sorted(self._sums.items(), key=lambda item: -item[1][1])[:_TOP_TOKENS]
        return [
            {
                "text": escape_control_chars(text, max_chars=40),
                "count": int(count),
                "share": number(d / total),
                "disagreement": number(d / count),
                "alpha": number(alpha / count),
            }
            for text, (count, d, alpha) in ranked
        ]


def setting_text(value: Any) -> str:
    """Value of a setting as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return escape_control_chars(str(value), max_chars=400)


def number(value: Any) -> float | None:
    """Number rounded to six digits; None where the value is not a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        return None
    return float(f"{float(value):.6g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _evaluation(line: dict[str, Any]) -> dict[str, Any]:
    """Line of an evaluation without its example response."""
    return _tree({key: value for key, value in line.items() if key != "example"})


def _tree(node: Any) -> Any:
    if isinstance(node, dict):
        return {escape_control_chars(str(key)): _tree(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_tree(value) for value in node]
    if _is_number(node):
        return number(node)
    return (
        node
        if isinstance(node, bool) or node is None
        else escape_control_chars(str(node), max_chars=_PREVIEW_CHARACTERS)
    )
