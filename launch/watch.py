"""Progress of a run: `demopsd watch RUN [--web]`

Follows a run from another shell, or shows a finished one: a line for each step and evaluation, and in a terminal also
the progress, the time by stage, and a response of the latest step. Ends when the run is done, or by Ctrl-C. With --web
it also serves the run's report to browsers of this machine; the page renews itself while the run goes.
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

from demopsd_dist.report.live import serve_page
from demopsd_dist.report.read_run import read_config
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.console import Progress, response_lines
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import format_evaluation, format_step
from demopsd_dist.training.evaluate import evaluation_from_record
from demopsd_dist.util.errors import ConfigError, DataError
from demopsd_dist.util.fitted_lines import fitted
from launch._command_line import command_parser, exit_code_of, user_path

EVERY_S = 0.5
DAMAGED = "damaged line"  # key of a record for a line that is no JSON


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("watch", __doc__)
    parser.add_argument("run", type=user_path, metavar="RUN", help="a run folder")
    parser.add_argument("--web", action="store_true", help="also serve the report, which renews itself, on 127.0.0.1")
    parser.add_argument("--port", type=int, metavar="N", help="port of --web; a free one unless given")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    return exit_code_of(lambda: watch_with_page(RunFolder(arguments.run), console, arguments.web, arguments.port))


def watch_with_page(folder: RunFolder, console: Console, web: bool, port: int | None) -> int:
    """Print the run until it ends, with its page if asked for, which stays until Ctrl-C. The exit code."""
    if port is not None and not web:
        raise ConfigError(f"--port {port} is the port of --web. Add --web, or leave it out.")
    if not web:
        return watch(folder, console)
    refuse_no_run(folder)
    with serve_page(folder.path, port or 0) as address:
        console.print(f"the report renews itself at {address}", markup=False)
        watch(folder, console)
        console.print("the run is done; its page stays until Ctrl-C", markup=False)
        while True:
            time.sleep(EVERY_S)


def watch(folder: RunFolder, console: Console) -> int:
    """Print the run until it ends; the exit code."""
    refuse_no_run(folder)
    progress = Progress(int(read_config(folder.path).get("steps", 0)))
    live = Live(progress, console=console, refresh_per_second=2, transient=True)
    tail, warned = FileTail(folder.metrics), set[str]()
    with live if console.is_terminal else nullcontext():
        while True:
            done = folder.summary.is_file()  # checked before reading, so that lines written before it are read
            for record in tail.new_records():
                for line in fitted(line_of(record, progress) or "", console.width if console.is_terminal else None, 6):
                    if line:
                        console.print(line, markup=False)
            try:
                if (newest := newest_row(folder, progress.row)) is not None:
                    progress.show_sample(newest)
            except DataError as error:
                if str(error) not in warned:
                    console.print(f"warning: {error}", markup=False)
                warned.add(str(error))
            if done:
                break
            time.sleep(EVERY_S)
    if progress.row is not None:
        for text in response_lines(progress.row, console.width):
            console.print(text)
    return 0


def refuse_no_run(folder: RunFolder) -> None:
    """Raise DataError for a folder that is no run folder."""
    if not folder.metrics.is_file():
        raise DataError(f"{folder.path} is no run folder: it has no metrics.jsonl. Name a folder in runs/.")


def line_of(record: dict[str, Any], progress: Progress) -> str | None:
    """A record of `metrics.jsonl` as a printed line; a step also advances the progress."""
    if "evaluation" in record:
        accuracy = format_evaluation(evaluation_from_record(record))
        return f"{record['evaluation']:>5} after step {record['step']}: {accuracy}"
    if DAMAGED in record:
        return f"warning: {record[DAMAGED]}"
    if "step" not in record:
        return None
    metrics = {name: value for name, value in record.items() if isinstance(value, int | float)}
    progress.add_step(record["step"], metrics)
    return format_step(record["step"], progress.total_steps, metrics, progress.left_s)


def newest_row(folder: RunFolder, shown: samples.Row | None) -> samples.Row | None:
    """A response of the latest step with recorded samples; None where it is the one already shown."""
    files = samples.files(folder.samples)
    if not files or (shown is not None and files[-1] == samples.file_path(folder.samples, shown["step"])):
        return None
    rows = samples.read(files[-1])
    return rows[0] if rows else None


class FileTail:
    """Reader of the lines appended to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def new_records(self) -> Iterator[dict[str, Any]]:
        """Records of the complete lines since the last call; for a damaged line its byte position, under the key
        `DAMAGED`. If a rollback has shortened the file, reading continues at its end."""
        self._position = min(self._position, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    record = {DAMAGED: f"{self._path} is damaged: the line that ends at byte {self._position:,}"}
                if isinstance(record, dict):
                    yield record


if __name__ == "__main__":
    sys.exit(main())
