"""Before a run: `python -m launch.doctor [CONFIG] [key=value ...]`

Looks at this machine, and with a config at what it names; where the config joins a cluster, at every node of it. Each
line says what was looked at, where, and what was seen; below a problem stands how to mend it. Exit code 0 where there
is no problem (there may be warnings), 1 where there is one, 2 for a config that cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from demopsd_dist.config import MINISCI, Config, load
from demopsd_dist.util.errors import DemoPSDError
from launch._cluster_findings import cluster
from launch._command_line import exit_code_of
from launch._doctor_findings import Finding, FindingLevel, locked, machine, problem

SURVEY_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="a YAML file, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    arguments = parser.parse_intermixed_args(argv)
    return exit_code_of(lambda: examined(arguments))


def examined(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, arguments.overrides) if arguments.config else None
    problems = said(machine(config))
    if config is not None and config.ray_address is not None and not problems:
        problems += said(nodes(config))
    print(f"{problems} problem{'s' * (problems != 1)}")
    return int(problems > 0)


def said(findings: Iterable[Finding]) -> int:
    """Print each as it is found; the number of problems."""
    problems = 0
    for found in findings:
        print(f"{found.level.value:<8} {found.what:<14} {found.where}: {found.text}", flush=True)
        if found.fix:
            print(f"{'':<8} {'':<14} fix: {found.fix}")
        problems += found.level is FindingLevel.problem
    return problems


def nodes(config: Config) -> Iterator[Finding]:
    from launch._processes import fenced

    with fenced():
        from workers.cluster import session as ray_cluster
        from workers.cluster.node_info import survey

        try:
            ray_cluster.join(config, wanted=[])
        except (DemoPSDError, ConnectionError, RuntimeError, ValueError) as error:
            fix = "start it (ray start --head), or mend ray_address"
            yield problem("cluster", str(config.ray_address), str(error).strip().splitlines()[0], fix)
            return
        yield from cluster(config, survey([*locked("cpu"), *locked("gpu")], paths(config), SURVEY_S))


def paths(config: Config) -> list[str]:
    """What every node must see, as absolute paths."""
    named = [config.model.path, config.data.train, config.data.test, config.data.ood]
    files = [name for name in named if name and name != MINISCI and not name.startswith("hf:") and name != "split"]
    return [str(Path(name).resolve()) for name in files]


if __name__ == "__main__":
    sys.exit(main())
