"""Page of the campaign's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def report(runs: Sequence[Row]) -> list[str]:
    """Lines of the page: counts over all runs, faults by target and stage, messages by cause, a row for each run."""
    lives = [life for run in runs for life in run["lives"]]
    faults = [fault for life in lives for fault in life["faults"] if fault["planted"]]
    torn = [life["torn"] for life in lives if life["torn"]]
    struck = Counter(f"{fault['action']} of {fault['target']}" for fault in faults)
    stages = Counter(fault["stage"] for fault in faults)
    causes: Counter[str] = Counter()
    for life in lives:
        causes.update(life["causes"])
    wrong = [(run["seed"], index, life) for run in runs for index, life in enumerate(run["lives"], 1) if life["wrong"]]
    found = [f"run {run['seed']}: {text}" for run in runs for text in run["audit"]]
    left = [f"run {run['seed']}: {', '.join(run['left'])}" for run in runs if run["left"]]
    hours = sum(run["seconds"] for run in runs) / 3600
    total = {key: sum(run[key] for run in runs) for key in ("steps", "samples", "again", "undone")}
    return [
        "# Faults in whole runs",
        "",
        f"{len(faults)} faults and {len(torn)} torn files in {len(lives)} processes of {len(runs)} runs on real "
        "engines (Ray, vLLM, DeepSpeed on two CPU cores; the model of 0.86M parameters), in "
        f"{hours:.1f} hours: `python -m benchmarks.faults`. "
        f"{total['steps']:,} steps of {total['samples']:,} samples stand, {total['undone']:,} "
        f"samples were undone and done again, {total['again']:,} requested again.",
        "",
        f"- Audit (samples lost or doubled, steps missing, checkpoints damaged): {'; '.join(found) or 'no fault'}.",
        f"- Lives that hung: {sum(life['hung'] for life in lives)}; that left a process: "
        f"{sum(bool(life['left']) for life in lives)}.",
        f"- Shared memory or temporary files left after a run: {'; '.join(left) or 'none'}.",
        f"- Messages without a known cause: {sum(len(life['unknown']) for life in lives)}.",
        *(f"- **Wrong** in run {seed}, life {index}: {life['wrong']}" for seed, index, life in wrong),
        "",
        "| fault | number |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in struck.most_common()),
        *(f"| torn file: {kind} | {count} |" for kind, count in Counter(map(kind_of, torn)).most_common()),
        "",
        "| stage | faults |",
        "|---|---|",
        *(f"| {stage} | {count} |" for stage, count in stages.most_common()),
        "",
        "| cause that messages name | messages |",
        "|---|---|",
        *(f"| {cause} | {count} |" for cause, count in causes.most_common()),
        "",
        "| run | lives | faults | torn files | steps | samples | undone | s |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(run) for run in runs),
    ]


def kind_of(path: str) -> str:
    """Kind of a torn file: the first part of its path in the run folder."""
    return path.partition("/")[0]


def _row(run: Row) -> str:
    planted = sum(fault["planted"] for life in run["lives"] for fault in life["faults"])
    torn = sum(life["torn"] is not None for life in run["lives"])
    cells = [run["seed"], len(run["lives"]), planted, torn, run["steps"], run["samples"], run["undone"], run["seconds"]]
    return "| " + " | ".join(map(str, cells)) + " |"
