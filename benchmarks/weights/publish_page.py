"""Table of `benchmarks.weights`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
KINDS = {
    "transport": "Bytes arrived and their digest checked, by receivers that do nothing else.",
    "full": "vLLM engines as receivers: load, re-pack, and the canary compared.",
    "hosts": "Like the first table, with the receivers on another host: two network namespaces of this machine, on a "
    "virtual link without a limit of its own. Shared memory does not reach there.",
}


def same_case(one: Row, other: Row) -> bool:
    """True if two rows measure the same model, kind, transport and number of receivers."""
    return all(one[key] == other[key] for key in ("model", "kind", "receivers", "transport"))


def report(rows: Sequence[Row], machine: Row) -> str:
    """The page, with a table for each kind of receiver."""
    lines = [
        "# Publishing weights",
        "",
        f"{machine['cores']} cores ({machine['machine']}), load average {machine['load_average_at_end']:.0f}, torch "
        f"{machine['torch']}; XXH3 digests {machine['digest_gb_per_s']:.1f} GB/s on one core. "
        f"{machine.get('note', '')} Seconds are medians of a "
        "whole publish, seen from the driver; GB/s counts the model once, whatever the number of receivers. `of copy` "
        "is relative to the rate at which the machine copies memory, measured between the publishes. `x 1` is the time "
        "relative to one receiver, in turn with it; `first s` that of the very first publish, "
        "to all receivers. A process group (`collective`) is formed before a publish whose receivers are others than "
        "the last one's: `form s`, which `s` leaves out and `first s` holds. The columns after `first s` say where the "
        "time goes, and overlap: pack (copy and digest at the sender), verify (digest at the slowest receiver), load "
        "(from its first bucket to its last "
        "tensor in place), of which re-pack for the kernels.",
    ]
    for kind, meaning in KINDS.items():
        if not any(row["kind"] == kind for row in rows):
            continue
        lines += ["", f"## {kind.capitalize()}", "", meaning, ""]
        lines += ["| model | GB | transport | receivers | s | GB/s | copy GB/s | of copy | x 1 | first s | pack s |"]
        lines[-1] += " verify s | load s | re-pack s | form s | calls |"
        lines += ["|" + "---|" * 16]
        lines += [table_line(row, rows) for row in rows if row["kind"] == kind]
    return "\n".join(lines).replace("  Seconds", " Seconds") + "\n"


def table_line(row: Row, rows: Sequence[Row] = ()) -> str:
    """Line of a case in the table. `x 1` needs the row with one receiver among `rows`."""
    alone = [other for other in rows if same_case(other, row | {"receivers": 1})]
    ratio = f"{row['seconds'] / alone[0]['seconds']:.2f}" if alone else "–"
    return (
        f"| {row['model']} | {row['gigabytes']:.2f} | {row['transport']} | {row['receivers']} | {row['seconds']:.2f} | "
        f"{row['gb_per_s']:.2f} | {row['copy_gb_per_s']:.1f} | {row['of_copy_rate']:.0%} | {ratio} | "
        f"{row['first_s']:.2f} | {row['packed_s']:.2f} | {row['verified_s']:.2f} | {row['loaded_s']:.2f} | "
        f"{row['repacked_s']:.2f} | {row.get('formed_s', 0.0):.2f} | {row['calls']:.0f} |"
    )
