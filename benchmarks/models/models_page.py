"""Page of the matrix: one line an architecture, and the counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.models.zoo import ZOO

Row = dict[str, Any]
GOAL_NATS = 1e-4


def report(rows: Mapping[str, Row]) -> list[str]:
    """Lines of the page, rows in the order of the zoo."""
    ordered = [rows[name] for name in ZOO if name in rows]
    by_result = {
        result: [row for row in ordered if row["result"] == result] for result in ("trains", "refused", "crashed")
    }
    exact = [row for row in by_result["trains"] if (worst(row) or 0.0) <= GOAL_NATS]
    lines = [
        "# Architectures",
        "",
        "Tiny models with random weights (two layers, hidden states of 128, float32) through the trainer on two CPU "
        "cores: real Ray, vLLM and DeepSpeed, two steps, then the export read by transformers' own class. "
        "`python -m benchmarks.models`.",
        "",
        f"{len(ordered)} architectures: {len(by_result['trains'])} train, {len(exact)} of them with differences of at "
        f"most {GOAL_NATS:g} nats; {len(by_result['refused'])} are refused before an engine starts; "
        f"{len(by_result['crashed'])} crash.",
        "",
        "* engine: largest difference of engine and learner in a token's log-probability, sampled or of the canary",
        "* export: largest difference of the learner's log-probabilities and those of the exported folder",
        "* moved: largest change of a probe's log-probabilities by the two steps",
        "",
        "All in nats.",
        "",
        "| architecture | result | engine | export | moved | settings, reason | s | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*lines, *map(table_line, ordered)]


def table_line(row: Row) -> str:
    """A row of the table."""
    result = row["result"] if row["result"] == "trains" else f"{row['result']}: {row['where']}"
    about = [*(f"`{word}`" for word in row["words"]), *([row["reason"].replace("|", "\\|")] if row["reason"] else [])]
    cells = [
        row["name"],
        result,
        nats(worst(row)),
        nats(row["export_diff"]),
        nats(row["moved"]),
        " ".join(about),
        f"{row['seconds']:.0f}",
        (row["commit"] or "")[:7],
    ]
    return f"| {' | '.join(cells)} |"


def worst(row: Row) -> float | None:
    """The larger of the differences on sampled tokens and on the canary."""
    return largest(row[key] for key in ("logp_diff", "canary_diff"))


def largest(values: Iterable[float | None]) -> float | None:
    """Largest of the values that exist, NaN if one is; None without any."""
    present = [value for value in values if value is not None]
    return float(np.max(present)) if present else None


def nats(value: float | None) -> str:
    """Number of a cell; empty where it was not measured."""
    return "" if value is None else f"{value:.1e}"


def crashed(rows: Sequence[Row]) -> list[str]:
    """Lines for rows that neither train nor are refused in time."""
    return [f"{row['name']}: {row['where']}: {row['reason']}" for row in rows if row["result"] == "crashed"]
