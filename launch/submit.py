"""Train on a cluster, from anywhere that reaches its head: `python -m launch.submit CONFIG --address http://HEAD:8265
[key=value ...]`

Sends the code of this checkout through Ray's job API, runs `launch.train` with it on the head, joined to the cluster,
and shows its output. The exit code is that of the run. Interrupted, it leaves the job as it is. With the job's name
`--status` tells how it stands, `--logs` shows its output, and `--stop` asks it to stop: it saves, and can be resumed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import MINISCI, SPLIT, Config, load
from demopsd_dist.util.code_digest import ROOT
from demopsd_dist.util.errors import ConfigError
from launch._command_line import exit_code_of
from launch._stopping import INTERRUPTED
from launch._task import COMMIT, commit

if TYPE_CHECKING:
    from workers.cluster.jobs import JobClient, SubmittedJob

JOINS = "ray_address=auto"
ADDRESS = "RAY_API_SERVER_ADDRESS"  # the variable that Ray's own commands read


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parsed(argv)
    return exit_code_of(lambda: done(arguments))


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="a YAML file of this checkout, for example configs/multi_node.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--address", default=os.environ.get(ADDRESS), help=f"of the head's dashboard; else {ADDRESS}")
    parser.add_argument("--python", default=sys.executable, help="on the head; default: the path of this one")
    parser.add_argument("--resume", action="store_true", help="go on with the newest run of this name")
    parser.add_argument("--detach", action="store_true", help="print the job's name, and do not follow it")
    parser.add_argument("--status", metavar="JOB", help="how it stands")
    parser.add_argument("--logs", metavar="JOB", help="its output, and what is added to it until it ends")
    parser.add_argument("--stop", metavar="JOB", help="ask it to save and end")
    arguments = parser.parse_intermixed_args(argv)
    asked = [word for word in (arguments.config, arguments.status, arguments.logs, arguments.stop) if word]
    if len(asked) != 1:
        parser.error("give a config to submit, or one of --status, --logs and --stop")
    if not arguments.address:
        parser.error(f"--address http://HEAD:8265 is needed, or {ADDRESS}")
    return arguments


def done(arguments: argparse.Namespace) -> int:
    config = settings(arguments) if arguments.config else None
    command = entrypoint(arguments, config) if config else ""
    from workers.cluster.jobs import JobClient

    jobs = JobClient(arguments.address)
    if arguments.status:
        return status(jobs, arguments.status)
    if arguments.stop:
        asked = jobs.stop(arguments.stop)
        print(f"{arguments.stop} is asked to stop" if asked else f"{arguments.stop} has ended already")
        return 0
    if config is None:
        return followed(jobs, arguments.logs)
    name = jobs.submit(command, ROOT, {COMMIT: commit() or ""}, config.limits.stop_s)
    print(f"job {name}", flush=True)
    return 0 if arguments.detach else followed(jobs, name)


def settings(arguments: argparse.Namespace) -> Config:
    return load(arguments.config, [*arguments.overrides, JOINS])


def entrypoint(arguments: argparse.Namespace, config: Config) -> str:
    """What the head runs.

    Raises:
        ConfigError: it would not find there what the settings name.
    """
    path = Path(arguments.config).resolve()
    if not path.is_relative_to(ROOT):
        raise ConfigError(f"{path} is not sent with the checkout {ROOT}. Put it into configs/ there.")
    if set_here := [word for word in arguments.overrides if word.startswith("ray_address=")]:
        raise ConfigError(f"{set_here[0]}: a job joins the cluster that it is sent to. Drop it.")
    refuse_relative_paths(config)
    words = [path.relative_to(ROOT).as_posix(), *arguments.overrides, JOINS]
    words += ["--resume"] * arguments.resume
    return "exec " + shlex.join([arguments.python, "-m", "launch.train", *words])


def refuse_relative_paths(config: Config) -> None:
    """
    Raises:
        ConfigError: a path of the settings would lead into the folder of the job, which Ray removes.
    """
    named = {"output_dir": config.output_dir, "model.path": config.model.path}
    named |= {f"data.{split}": source for split in ("train", "test", "ood") if (source := getattr(config.data, split))}
    for key, value in named.items():
        if value not in (MINISCI, SPLIT) and not value.startswith("hf:") and not Path(value).is_absolute():
            raise ConfigError(
                f"{key}={value} is relative, and a job runs in a folder that the cluster removes. Give the whole path, "
                "on storage that every node sees."
            )


def status(jobs: JobClient, name: str) -> int:
    job = jobs.look(name)
    print(f"{name} {job.status}" + (f" with exit code {job.exit_code}" if job.exit_code else ""))
    if job.status == "FAILED":
        print(why(jobs, job))
    return 0


def followed(jobs: JobClient, name: str) -> int:
    """Show its output until it ends; its exit code."""

    async def show() -> None:
        async for text in jobs.follow(name):
            print(text, end="", flush=True)

    try:
        asyncio.run(show())
        job = jobs.settled(name)
    except KeyboardInterrupt:
        print(f"\n{name} goes on; --stop {name} ends it", file=sys.stderr)
        return INTERRUPTED
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        print(f"{name} was stopped", file=sys.stderr)
        return INTERRUPTED
    if not job.ended:
        print(f"{name} is {job.status}, and its log has ended", file=sys.stderr)
        return 1
    print(f"{name} failed with exit code {job.exit_code or 1}: {why(jobs, job)}", file=sys.stderr)
    return job.exit_code or 1


def why(jobs: JobClient, job: SubmittedJob) -> str:
    """Its last error: of the run's output where it has run, of Ray where it could not begin."""
    from workers.cluster.jobs import last_error

    return last_error(jobs.log(job.name)) if job.exit_code else " ".join(job.text.split())


if __name__ == "__main__":
    sys.exit(main())
