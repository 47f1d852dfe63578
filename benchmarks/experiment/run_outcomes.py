"""Outcomes of long runs by rules that were written down before the runs: collapsed, narrowed, forgets, leaks.

The rules are those of docs/experiment.md. They apply to runs that were evaluated several times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.experiment.run_records import Record, pairs_by_seed

FALL, UNREADABLE, REPEATED = 0.10, 0.10, 0.5
"""Fall of test mean@k from the run's best, share of responses without an answer, and share of repeated 4-grams, each of
which is a collapse."""
NARROWED, FORGOTTEN = 0.03, 0.03
"""Falls of test pass@k and of out-of-distribution mean@k."""
FORGETS_SINCE_STEP = 50
Outcome = Callable[[Record], bool]


def evaluations_of(record: Record, split: str) -> list[Record]:
    """Evaluations of a split during a run, in order; empty in records of earlier versions."""
    return [row for row in record.get("evaluations", []) if row["split"] == split]


def has_collapsed(record: Record) -> bool:
    """Whether test mean@k has fallen by `FALL` from the run's best or below its start, or responses have no answer or
    repeat themselves."""
    rows = evaluations_of(record, "test")
    best, last = max(row["mean"] for row in rows), rows[-1]
    repeated = record["curves"].get("rollout/repeated_fraction", [0.0])[-1]
    has_fallen = best - last["mean"] >= FALL or last["mean"] < rows[0]["mean"]
    return has_fallen or last["unparsed"] > UNREADABLE or repeated > REPEATED


def has_narrowed(record: Record) -> bool:
    """Whether test pass@k is lower than at the start."""
    rows = evaluations_of(record, "test")
    return rows[0]["pass"] - rows[-1]["pass"] >= NARROWED


def has_forgotten(record: Record) -> bool:
    """Whether out-of-distribution mean@k is lower than after `FORGETS_SINCE_STEP` steps."""
    rows = evaluations_of(record, "ood")
    early = next((row for row in rows if row["step"] == FORGETS_SINCE_STEP), None)
    return early is not None and early["mean"] - rows[-1]["mean"] > FORGOTTEN


def has_leaked(record: Record, other: Record, margin: float) -> bool:
    """Whether the early-answer probe on test questions is higher by `margin` than that of the other run."""
    splits = [one["summary"]["evaluation"].get("early/test") for one in (record, other)]
    return None not in splits and splits[0]["mean"]["average"] - splits[1]["mean"]["average"] > margin


OUTCOMES: Mapping[str, Outcome] = {
    "collapsed": has_collapsed,
    "narrowed": has_narrowed,
    "forgets": has_forgotten,
}


def outcome_lines(table: Mapping[str, Sequence[Record]], leaks_compared_with: str, leak_margin: float) -> list[str]:
    """Lines of the page: how many of an arm's seeds have each outcome; none where runs have one or two evaluations.

    Args:
        table: records of each arm, and of `base`, the model before training with each seed.
        leaks_compared_with: arm whose run with the same seed has the early-answer probe without a leak.
        leak_margin: rise of the probe over that run's that counts as a leak.
    """
    arms = {
        arm: records for arm, records in table.items() if arm != "base" and len(evaluations_of(records[0], "test")) > 2
    }
    if not arms:
        return []
    names = (*OUTCOMES, "leaks")
    lines = [
        "## Outcomes",
        "",
        "Seeds of each arm, by the rules of docs/experiment.md; an arm has an outcome if most of its seeds do. A "
        f"run leaks if its early-answer probe is over {100 * leak_margin:.0f} points above {leaks_compared_with}'s.",
        "",
        "| arm | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for arm, records in arms.items():
        cells = [f"{sum(map(outcome, records))} of {len(records)}" for outcome in OUTCOMES.values()]
        pairs = pairs_by_seed(records, table.get(leaks_compared_with, []))
        leaks = sum(has_leaked(record, other, leak_margin) for record, other in pairs)
        cells.append(f"{leaks} of {len(pairs)}" if pairs and arm != leaks_compared_with else "–")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines
