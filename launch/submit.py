"""Training as a job of a cluster: `demopsd submit CONFIG --address http://HEAD:8265 [key=value ...]`

Checks the settings here, sends the code of this checkout through Ray's job API, runs `launch.train` with it on the
head, joined to the cluster, and prints its output. The exit code is that of the run (`ray job submit` has 1 for every
failure). Interrupted, it leaves the job running. With the name of a job `--status` prints its state, `--logs` follows
its output, and `--stop` asks it to stop: it saves, and can be resumed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import MINISCI, SPLIT, Config, config_path, load, train_sets
from demopsd_dist.data.sources.gym_tasks import GYM
from demopsd_dist.util.code_digest import ROOT
from demopsd_dist.util.errors import ConfigError
from demopsd_dist.util.fitted_lines import print_fitted
from demopsd_dist.util.rooms import IS_CHECKOUT
from launch._command_line import command_parser, exit_code_of
from launch._stopping import INTERRUPTED
from launch._task import COMMIT, commit

if TYPE_CHECKING:
    from workers.cluster.jobs import JobClient, SubmittedJob

JOINS = "ray_address=auto"
ADDRESS = "RAY_API_SERVER_ADDRESS"  # the variable that Ray's own commands read


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return exit_code_of(lambda: run_command(arguments))


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("submit", __doc__)
    parser.add_argument("config", nargs="?", help="a YAML file of this checkout, for example configs/multi_node.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument(
        "--address", default=os.environ.get(ADDRESS), help=f"of the head's dashboard; default: {ADDRESS}"
    )
    parser.add_argument("--python", default=sys.executable, help="Python on the head; default: the path of this one")
    parser.add_argument("--resume", action="store_true", help="continue the newest run of this name")
    parser.add_argument("--detach", action="store_true", help="print the job's name and do not follow its output")
    parser.add_argument("--status", metavar="JOB", help="print the state of a job")
    parser.add_argument("--logs", metavar="JOB", help="print the output of a job until it ends")
    parser.add_argument("--stop", metavar="JOB", help="ask a job to save and end")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments with exactly one action, and an address."""
    parser = make_parser()
    arguments = parser.parse_intermixed_args(argv)
    actions = [word for word in (arguments.config, arguments.status, arguments.logs, arguments.stop) if word]
    if len(actions) != 1:
        parser.error("give a config to submit, or one of --status, --logs and --stop")
    if not arguments.address:
        parser.error(f"--address http://HEAD:8265 is needed, or {ADDRESS}")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """Submit a run, or act on a submitted job; the exit code."""
    config = load_settings(arguments) if arguments.config else None
    command = entrypoint(arguments, config) if config else ""
    from workers.cluster.jobs import JobClient

    jobs = JobClient(arguments.address)
    if arguments.status:
        return print_status(jobs, arguments.status)
    if arguments.stop:
        stopping = jobs.stop(arguments.stop)
        print(f"{arguments.stop} is asked to stop" if stopping else f"{arguments.stop} has ended already")
        return 0
    if config is None:
        return follow(jobs, arguments.logs)
    name = jobs.submit(command, ROOT, {COMMIT: commit() or ""}, config.limits.stop_s)
    print(f"job {name}", flush=True)
    return 0 if arguments.detach else follow(jobs, name)


def load_settings(arguments: argparse.Namespace) -> Config:
    """Settings of the run, joined to the cluster of the job."""
    return load(arguments.config, [*arguments.overrides, JOINS])


def entrypoint(arguments: argparse.Namespace, config: Config) -> str:
    """Command that the head runs.

    Raises:
        ConfigError: the settings name something that does not exist on the head.
    """
    if not IS_CHECKOUT:
        raise ConfigError(f"a job is sent with its code, and {ROOT} is an installed package. Submit from a checkout.")
    path = config_path(arguments.config).resolve()
    if not path.is_relative_to(ROOT):
        raise ConfigError(f"{path} is not sent with the checkout {ROOT}. Put it into configs/ there.")
    if addresses := [word for word in arguments.overrides if word.startswith("ray_address=")]:
        raise ConfigError(f"{addresses[0]}: a job joins the cluster that it is sent to. Drop it.")
    refuse_relative_paths(config)
    words = [path.relative_to(ROOT).as_posix(), *arguments.overrides, JOINS]
    words += ["--resume"] * arguments.resume
    return "exec " + shlex.join([arguments.python, "-m", "launch.train", *words])


def refuse_relative_paths(config: Config) -> None:
    """Refuse relative paths, which would lead into the folder of the job, which Ray removes.

    Raises:
        ConfigError: a path of the settings is relative.
    """
    data, sets = config.data, train_sets(config.data)
    train = {f"data.train[{index}].path": one.path for index, one in enumerate(sets)} or {"data.train": data.train}
    sources = {**train, "data.test": data.test, "data.ood": data.ood}
    paths = {"output_dir": config.output_dir, "model.path": config.model.path, **sources}
    for key, value in paths.items():
        path = value and _path_in(value)
        if path and not Path(path).is_absolute():
            raise ConfigError(
                f"{key}={value} is relative, and a job runs in a folder that the cluster removes. Give the absolute "
                "path, on storage that every node sees."
            )


def _path_in(source: str) -> str | None:
    """Path of a source that is a file or a local folder; None for a generator or a data set of the hub."""
    kind, _, rest = source.partition(":")
    if kind in (MINISCI, GYM, SPLIT):
        return None
    if kind == "hf":
        folder = re.split("[:@]", rest)[0]
        return folder if Path(folder).is_dir() else None
    return source


def print_status(jobs: JobClient, name: str) -> int:
    """Print the state of a job, with the last error of one that failed."""
    job = jobs.state(name)
    print(f"{name} {job.status}" + (f" with exit code {job.exit_code}" if job.exit_code else ""))
    if job.status == "FAILED":
        print_fitted([failure_reason(jobs, job)])
    return 0


def follow(jobs: JobClient, name: str) -> int:
    """Print the output of a job until it ends; the exit code of the run."""

    async def print_log() -> None:
        async for text in jobs.follow_log(name):
            print(text, end="", flush=True)

    try:
        asyncio.run(print_log())
        job = jobs.final_state(name)
    except KeyboardInterrupt:
        print(f"\n{name} continues to run; --stop {name} ends it", file=sys.stderr)
        return INTERRUPTED
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        print(f"{name} was stopped", file=sys.stderr)
        return INTERRUPTED
    if not job.ended:
        print(f"{name} is {job.status}, and its log has ended", file=sys.stderr)
        return 1
    print(f"{name} failed with exit code {job.exit_code or 1}: {failure_reason(jobs, job)}", file=sys.stderr)
    return job.exit_code or 1


def failure_reason(jobs: JobClient, job: SubmittedJob) -> str:
    """Last error of a failed job: from the run's output where it ran, from Ray where it could not start."""
    from workers.cluster.jobs import last_error

    return last_error(jobs.log(job.name)) if job.exit_code else " ".join(job.message.split())


if __name__ == "__main__":
    sys.exit(main())
