"""More or fewer rollout workers in a running run: `demopsd scale RUN --rollout-workers N`

New workers get the current weights; removed ones finish their requests. Exit code 0 when N serve, 1 when they do not,
2 for wrong input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Sequence

from demopsd_dist.config import load
from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.util.errors import ConfigError, WorkerError
from launch._command_line import command_parser, exit_code_of, user_path
from launch._scaling import answer_file, read_message, request_file


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("scale", __doc__)
    parser.add_argument("run", type=user_path, help="the folder of a running run")
    parser.add_argument("--rollout-workers", type=int, required=True, metavar="N", help="number of workers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return exit_code_of(lambda: scale(RunFolder(arguments.run), arguments.rollout_workers))


def scale(folder: RunFolder, workers: int) -> int:
    """Request a number of rollout workers and wait for the answer of the run.

    Raises:
        ConfigError: `folder` is no run folder, or no run is using it.
        WorkerError: the run could not follow the request, or did not answer.
    """
    if workers < 1:
        raise ConfigError(f"--rollout-workers {workers}: a run needs 1 or more.")
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is no run folder.")
    if not folder.in_use():
        raise ConfigError(f"{folder.path} is not running. Start it with rollout.num_workers={workers}.")
    limits = load(folder.config).limits
    request_id = uuid.uuid4().hex
    replace_text(request_file(folder), json.dumps({"id": request_id, "workers": workers}) + "\n")
    deadline = time.monotonic() + limits.start_s + limits.call_s
    while time.monotonic() < deadline:
        answer = read_message(answer_file(folder))
        if answer is not None and answer.get("id") == request_id:
            if answer["problem"]:
                raise WorkerError(f"{answer['workers']} rollout workers serve, not {workers}: {answer['problem']}")
            print(f"{answer['workers']} rollout workers serve")
            return 0
        if not folder.in_use():
            raise WorkerError(f"{folder.path}: the run ended before it followed the request.")
        time.sleep(0.2)
    raise WorkerError(f"{folder.path}: the run did not answer. The request stays in its folder.")


if __name__ == "__main__":
    sys.exit(main())
