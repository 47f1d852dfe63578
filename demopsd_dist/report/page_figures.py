"""What the page draws of a run, as plain numbers and texts that JSON can hold."""

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

MOST_POINTS = 2000
_PREVIEW = 160
_TELLING_TOKENS = 24
_EXPECTED = {"name", "output_dir"}  # differ between any two runs


def of_run(run: RunFiles) -> dict[str, Any]:
    every = -(-len(run.steps) // MOST_POINTS) or 1
    steps = run.steps[::every]
    names = sorted({name for step in steps for name in step if name != "step" and _is_number(step[name])})
    return {
        "name": escape_control_chars(run.name, max_chars=80),
        "config": {key: shown(value) for key, value in run.config.items()},
        "summary": _tree(run.summary),
        "done": bool(run.summary),
        "every": every,
        "step": [step["step"] for step in steps],
        "metrics": {name: [number(step.get(name)) for step in steps] for name in names},
        "evaluations": [_evaluation(line) for line in run.evaluations],
    }


def meanings(runs: Iterable[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Unit and meaning of every metric that some run has."""
    names = {name for run in runs for name in run["metrics"]}
    found = {name: metric_glossary.find_metric(name) for name in sorted(names)}
    return {name: {"unit": metric.unit, "meaning": metric.meaning} for name, metric in found.items() if metric}


def differences(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs, and so much of their provenance; names of folders come last."""
    tables = [run.config | {f"({key})": run.summary[key] for key in ("commit",) if key in run.summary} for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [{"key": key, "values": [shown(table.get(key, "–")) for table in tables]} for key in keys]
    found = [row for row in rows if len(set(row["values"])) > 1]
    return sorted(found, key=lambda row: row["key"] in _EXPECTED)


def index_entry(row: Row) -> dict[str, Any]:
    """What the list of samples shows and sorts by."""

    def statistic(name: str, of: Any) -> float | None:
        values = row[name]
        return number(of(values)) if values else None

    return {
        "step": row["step"],
        "prompt": escape_control_chars(row["prompt_id"], max_chars=_PREVIEW),
        "sample": row["sample"],
        "field": escape_control_chars(row["field"], max_chars=40),
        "expected": escape_control_chars(row["expected"], max_chars=_PREVIEW),
        "question": escape_control_chars(row["question"][: 2 * _PREVIEW], max_chars=_PREVIEW),
        "response": escape_control_chars(row["response"][: 2 * _PREVIEW], max_chars=_PREVIEW),
        "reward": number(row["reward"]),
        "truncated": row["truncated"],
        "learned": row["learned"],
        "worker": row["worker"],
        "tokens": len(row["token_ids"]),
        "alpha": statistic("alpha", np.mean),
        "disagreement": statistic("disagreement", np.mean),
        "peak": statistic("disagreement", np.max),
        "entropy": statistic("entropy", np.mean),
    }


class MostTellingTokens:
    """The tokens at which reference and teacher disagree most, over all samples: where the solution speaks."""

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

    def table(self) -> list[dict[str, Any]]:
        """By their part of all disagreement."""
        whole = sum(sums[1] for sums in self._sums.values()) or 1.0
        ranked = sorted(self._sums.items(), key=lambda item: -item[1][1])[:_TELLING_TOKENS]
        return [
            {
                "text": escape_control_chars(text, max_chars=40),
                "count": int(count),
                "share": number(d / whole),
                "disagreement": number(d / count),
                "alpha": number(alpha / count),
            }
            for text, (count, d, alpha) in ranked
        ]


def shown(value: Any) -> str:
    """A setting as a reader would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return escape_control_chars(str(value), max_chars=400)


def number(value: Any) -> float | None:
    """To six digits; what is no finite number is nothing."""
    if not _is_number(value) or not math.isfinite(value):
        return None
    return float(f"{float(value):.6g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _evaluation(line: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without its example, which the samples have more of."""
    return _tree({key: value for key, value in line.items() if key != "example"})


def _tree(node: Any) -> Any:
    if isinstance(node, dict):
        return {escape_control_chars(str(key)): _tree(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_tree(value) for value in node]
    if _is_number(node):
        return number(node)
    return node if isinstance(node, bool) or node is None else escape_control_chars(str(node), max_chars=_PREVIEW)
