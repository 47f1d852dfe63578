"""Checks before a run: `demopsd doctor [CONFIG] [key=value ...]`

Checks this machine, and with a config the model, data and disk that it names; where the config joins a cluster, every
node of it. Each line gives what was checked, where, and the result; a problem is followed by its fix. Exit code 0 where
there is no problem (there may be warnings), 1 where there is one, 2 for a config that cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import MINISCI, Config, load, sources_of
from demopsd_dist.util.code_digest import ROOT, code_digest, differing_files, file_digests
from demopsd_dist.util.errors import DemoPSDError
from demopsd_dist.util.fitted_lines import print_fitted
from launch._command_line import command_parser, exit_code_of
from launch._doctor_findings import (
    Finding,
    FindingLevel,
    check_machine,
    check_resources,
    check_shared_memory,
    check_versions,
    lock_name,
    locked_versions,
    ok,
    problem,
    warning,
)

if TYPE_CHECKING:
    from workers.cluster.node_info import ClusterInfo, NodeInfo

INDENT = 24  # columns of level and subject before the text of a finding
SURVEY_S = 60.0  # time limit for the answer of a node
CLOCK_S = 1.0  # a larger difference puts the time stamps of logs and metrics out of order
SLOW_GB_PER_S = 0.2  # 1.6 Gb/s: weights of a few GB would take longer than a step


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("doctor", __doc__)
    parser.add_argument("config", nargs="?", help="a YAML file, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_intermixed_args(argv)
    return exit_code_of(lambda: examine(arguments))


def examine(arguments: argparse.Namespace) -> int:
    """Check the machine, then the cluster where the machine has no problem; the exit code."""
    config = load(arguments.config, arguments.overrides) if arguments.config else None
    problems = print_findings(check_machine(config))
    if config is not None and config.ray_address is not None:
        if problems:
            reason = f"not checked: solve the problem{'s' * (problems != 1)} above first"
            problems += print_findings([Finding(FindingLevel.warning, "cluster", config.ray_address, reason)])
        else:
            problems += print_findings(check_cluster(config))
    print(f"{problems} problem{'s' * (problems != 1)}")
    return int(problems > 0)


def print_findings(findings: Iterable[Finding]) -> int:
    """Print each finding as soon as it is made; the number of problems."""
    problems = 0
    for finding in findings:
        print_fitted([f"{finding.level.value:<8} {finding.what:<14} {finding.where}: {finding.text}"], INDENT)
        if finding.fix:
            print_fitted([f"{'':<{INDENT}}fix: {finding.fix}"], INDENT)
        problems += finding.level is FindingLevel.problem
    return problems


def check_cluster(config: Config) -> Iterator[Finding]:
    """Join the cluster and check every node of it."""
    from launch._processes import fenced

    with fenced():
        from workers.cluster import session
        from workers.cluster.node_info import collect_node_info

        try:
            session.join(config, wanted=[])
        except (DemoPSDError, ConnectionError, RuntimeError, ValueError) as error:
            fix = "start it (ray start --head), or correct ray_address"
            yield problem("cluster", str(config.ray_address), str(error).strip().splitlines()[0], fix)
            return
        packages = [*locked_versions("cpu"), *locked_versions("gpu")]
        yield from cluster_findings(config, collect_node_info(packages, paths_of(config), SURVEY_S))


def paths_of(config: Config) -> list[str]:
    """Absolute paths of model and data, which every node must see."""
    sources = [config.model.path, *sources_of(config.data)]
    files = [source for source in sources if source.partition(":")[0] not in (MINISCI, "hf", "gym")]
    return [str(Path(file).resolve()) for file in files]


def cluster_findings(config: Config, cluster: ClusterInfo) -> Iterator[Finding]:
    """Findings about the nodes, from their own answers."""
    driver_files = file_digests()
    cpus, gpus = cluster.offered.get("CPU", 0.0), cluster.offered.get("GPU", 0.0)
    yield ok("nodes", "the cluster", f"{len(cluster.nodes)} answered")
    yield from check_resources(config, "the cluster", cpus, gpus, f"{cpus:g} CPUs, {gpus:g} GPUs")
    for answer in cluster.unanswered:
        name, _, reason = answer.partition(": ")
        yield problem("nodes", name, reason, "see its logs; take it out, or restart it")
    for node in cluster.nodes:
        yield _check_code(node, driver_files)
        yield from check_versions(node.versions, lock_name(node.versions), node.name)
        yield from _check_paths(node)
        yield _check_clock(node)
        yield check_shared_memory(node.name, *node.shared_memory_gib, node.memory_gib)
        yield ok("processors", node.name, f"{node.cpus} CPUs, {node.gpus} GPUs, {node.memory_gib:.0f} GiB")
    for (sender, receiver), rate in cluster.gb_per_s.items():
        yield _check_bandwidth(f"{sender} to {receiver}", rate)


def _check_code(node: NodeInfo, driver_files: dict[str, str]) -> Finding:
    if not node.files:
        return problem("code", node.name, "it has no checkout of the project", f"copy this machine's to {ROOT} there")
    differing = differing_files(driver_files, node.files)
    if differing:
        digests = f"digest {code_digest(node.files)}, here {code_digest(driver_files)}"
        text = f"{digests}: {len(differing)} files differ, {differing[0]} first"
        return problem("code", node.name, text, f"bring {ROOT} there to the commit of this machine")
    return ok("code", node.name, f"digest {code_digest(node.files)}, as here")


def _check_paths(node: NodeInfo) -> Iterator[Finding]:
    for path in node.missing:
        yield problem("paths", node.name, f"{path} is not there", "mount or copy it to the same path on every node")
    if not node.missing:
        yield ok("paths", node.name, "model and data are there")


def _check_clock(node: NodeInfo) -> Finding:
    text = f"{node.clock_s:+.3f} s from here, known to {node.clock_within_s:.3f} s"
    if abs(node.clock_s) > CLOCK_S + node.clock_within_s:
        return problem("clock", node.name, text, "set it (chronyd, ntpd)")
    return ok("clock", node.name, text)


def _check_bandwidth(where: str, gb_per_s: float) -> Finding:
    text = f"{gb_per_s:.2f} GB/s through the object store"
    if gb_per_s < SLOW_GB_PER_S:
        fix = "check the network between them (iperf3), and that Ray uses the fast interface (--node-ip-address)"
        return warning("bandwidth", where, text, fix)
    return ok("bandwidth", where, text)


if __name__ == "__main__":
    sys.exit(main())
