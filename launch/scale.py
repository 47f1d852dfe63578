"""Scale: `python -m launch.scale RUN --rollout-workers N` -- more or fewer rollout workers, while the run goes on.

Workers that join get the current weights; those that leave finish what they have. Exit code 0 when N serve, 1 when they
do not, 2 for wrong input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.config import load
from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.util.errors import ConfigError, WorkerError
from launch._command_line import exit_code_of
from launch._scaling import answer_file, read, wish_file


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run that is under way")
    parser.add_argument("--rollout-workers", type=int, required=True, metavar="N")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: scaled(RunFolder(arguments.run), arguments.rollout_workers))


def scaled(folder: RunFolder, workers: int) -> int:
    """
    Raises:
        ConfigError: this is no run folder, or nobody runs in it.
        WorkerError: the run could not follow, or did not answer.
    """
    if workers < 1:
        raise ConfigError(f"--rollout-workers {workers}: a run needs 1 or more.")
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is no run folder.")
    if not folder.in_use():
        raise ConfigError(f"{folder.path} is not under way. Start it with rollout.num_workers={workers}.")
    limits = load(folder.config).limits
    wish = uuid.uuid4().hex
    replace_text(wish_file(folder), json.dumps({"id": wish, "workers": workers}) + "\n")
    deadline = time.monotonic() + max(limits.start_s, limits.call_s)
    while time.monotonic() < deadline:
        answer = read(answer_file(folder))
        if answer is not None and answer.get("id") == wish:
            if answer["problem"]:
                raise WorkerError(f"{answer['workers']} rollout workers serve, not {workers}: {answer['problem']}")
            print(f"{answer['workers']} rollout workers serve")
            return 0
        if not folder.in_use():
            raise WorkerError(f"{folder.path}: the run ended before it followed.")
        time.sleep(0.2)
    raise WorkerError(f"{folder.path}: the run did not answer. It keeps the wish.")


if __name__ == "__main__":
    sys.exit(main())
