"""Watch: `python -m launch.watch RUN`

Follows a run from another shell, or looks at one that is done: its steps and evaluations a line each, and in a terminal
how far it is, where the time goes, and a response that it sampled last. It ends when the run is done, or by Ctrl-C.
Exit code 0; 2 where RUN is no run folder; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from demopsd_dist.report.read_run import read_config
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.console import Progress, response_lines
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import format_evaluation, format_step
from demopsd_dist.training.evaluate import evaluation_from_record
from demopsd_dist.util.errors import DataError
from launch._command_line import exit_code_of

EVERY_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: watch(RunFolder(arguments.run), Console(highlight=False, soft_wrap=True)))


def watch(folder: RunFolder, console: Console) -> int:
    if not folder.metrics.is_file():
        raise DataError(f"{folder.path} is no run folder: it has no metrics.jsonl. Give a folder below runs/.")
    progress = Progress(int(read_config(folder.path).get("steps", 0)))
    live = Live(progress, console=console, refresh_per_second=2, transient=True)
    tail = FileTail(folder.metrics)
    with live if console.is_terminal else nullcontext():
        while True:
            done = folder.summary.is_file()  # before reading: what is written before it is then read
            for record in tail.new():
                if line := line_of(record, progress):
                    console.print(line, markup=False)
            if (newest := newest_row(folder, progress.row)) is not None:
                progress.show_sample(newest)
            if done:
                break
            time.sleep(EVERY_S)
    if progress.row is not None:
        for text in response_lines(progress.row, console.width):
            console.print(text)
    return 0


def line_of(record: dict[str, Any], progress: Progress) -> str | None:
    """A line of `metrics.jsonl` as a reader sees it; a step moves the progress on."""
    if "evaluation" in record:
        return f"{record['evaluation']:>5} after step {record['step']}: {format_evaluation(evaluation_from_record(record))}"
    if "step" not in record:
        return None
    metrics = {name: value for name, value in record.items() if isinstance(value, int | float)}
    progress.add_step(record["step"], metrics)
    return format_step(record["step"], progress.total_steps, metrics, progress.left_s)


def newest_row(folder: RunFolder, known: samples.Row | None) -> samples.Row | None:
    """A response of the latest step that kept some; None where that is the one known."""
    files = samples.files(folder.samples)
    if not files or (known is not None and files[-1] == samples.file_path(folder.samples, known["step"])):
        return None
    rows = samples.read(files[-1])
    return rows[0] if rows else None


class FileTail:
    """What is written to a file of JSON lines, as it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The whole lines since the last call. Where a run has gone back to a checkpoint, the file is shorter than it
        was: then those after what is left."""
        self._read = min(self._read, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


if __name__ == "__main__":
    sys.exit(main())
