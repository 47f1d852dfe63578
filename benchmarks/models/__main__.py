"""Matrix of architectures: `python -m benchmarks.models [--only NAME ...] [--again]`

For each architecture of the zoo (`benchmarks/models/zoo.py`) a tiny model with random weights goes through the real
trainer for two steps. It must train with the engine's log-probabilities equal to the learner's, and export the same
model; or be refused by one line before an engine starts. Results are kept by row, with the commit at which it was
measured: rows that trained or were refused are not measured again without `--again` or `--only`. Exit code 1 if a
measured row crashed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.results_files import RESULTS, save, write, write_page
from benchmarks.common.timed_runs import DEMO
from benchmarks.models.models_page import Row, crashed, report, table_line
from benchmarks.models.zoo import ZOO
from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR

NAME = "models-cpu"


def read_rows(out: Path) -> dict[str, Row]:
    """Rows of an earlier call, by name."""
    path = out / f"{NAME}.json"
    return {row["name"]: row for row in json.loads(path.read_text())} if path.is_file() else {}


def due(rows: dict[str, Row], only: Sequence[str], again: bool) -> list[str]:
    """Names of the rows to measure: those named, else all that have no result or crashed."""
    if only:
        return list(only)
    return [name for name in ZOO if again or name not in rows or rows[name]["result"] == "crashed"]


def measure(names: Sequence[str], rows: dict[str, Row], out: Path) -> None:
    """Measure rows one after the other, and write each at once.

    A row that crashes may leave its processes unusable, and may owe it to an earlier row: it is measured once more in
    new processes, which counts.
    """
    from benchmarks.models.kept_processes import KeptProcesses
    from benchmarks.models.train_row import WORDS, measure_row
    from launch._processes import fenced
    from workers.cluster import session

    config = load(DEMO, list(WORDS))
    with fenced():
        session.join(config)
        processes = None
        for name in names:
            for _ in range(1 if processes is None else 2):
                processes = processes or KeptProcesses(config, MODEL_DIR)
                outcome = measure_row(ZOO[name], processes)
                if outcome.result != "crashed":
                    break
                processes.end()
                processes = None
            rows[name] = asdict(outcome) | {"words": list(outcome.words)}
            write(out, NAME, [rows[one] for one in ZOO if one in rows])
            write_page(out, NAME, report(rows))
            print(table_line(rows[name]), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=list(ZOO), help="rows to measure")
    parser.add_argument("--again", action="store_true", help="measure every row, whatever the results file has")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    rows = read_rows(arguments.out)
    names = due(rows, arguments.only, arguments.again)
    if names:
        measure(names, rows, arguments.out)
    save(arguments.out, NAME, [rows[name] for name in ZOO if name in rows], report(rows))
    faults = crashed([rows[name] for name in names])
    print("".join(f"crashed  {line}\n" for line in faults), end="")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
