"""What `launch.doctor` says of the nodes of a cluster. Pure: from their own accounts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from demopsd_dist.config import Config
from demopsd_dist.util.code_digest import ROOT, code_digest, differing_files, file_digests
from launch._doctor_findings import Finding, claims, lock_of, ok, problem, shared_memory, versions, warning

if TYPE_CHECKING:
    from workers.cluster.node_info import NodeInfo, NodeSurvey

CLOCK_S = 1.0  # time stamps of logs and metrics would be out of order beyond that
SLOW_GB_PER_S = 0.2  # 1.6 Gb/s: weights of a few GB would take longer than a step


def cluster(config: Config, found: NodeSurvey) -> Iterator[Finding]:
    here = file_digests()
    cpus, gpus = found.offered.get("CPU", 0.0), found.offered.get("GPU", 0.0)
    yield ok("nodes", "the cluster", f"{len(found.nodes)} answered")
    yield from claims(config, "the cluster", cpus, gpus, f"{cpus:g} CPUs, {gpus:g} GPUs")
    for text in found.silent:
        yield problem(
            "nodes", text.partition(": ")[0], text.partition(": ")[2], "see its logs; take it out, or restart it"
        )
    for node in found.nodes:
        yield _code(node, here)
        yield from versions(node.versions, lock_of(node.versions), node.name)
        yield from _paths(node)
        yield _clock(node)
        yield shared_memory(node.name, *node.shared_memory_gib, node.memory_gib)
        yield ok("processors", node.name, f"{node.cpus} CPUs, {node.gpus} GPUs, {node.memory_gib:.0f} GiB")
    for (sender, receiver), rate in found.gb_per_s.items():
        yield _rate(f"{sender} to {receiver}", rate)


def _code(node: NodeInfo, here: dict[str, str]) -> Finding:
    if not node.files:
        return problem("code", node.name, "there is no checkout that it would import", f"put this one at {ROOT} there")
    others = differing_files(here, node.files)
    if others:
        text = (
            f"digest {code_digest(node.files)}, here {code_digest(here)}: {len(others)} files differ, {others[0]} first"
        )
        return problem("code", node.name, text, f"bring {ROOT} there to the commit of this machine")
    return ok("code", node.name, f"digest {code_digest(node.files)}, as here")


def _paths(node: NodeInfo) -> Iterator[Finding]:
    for path in node.missing:
        yield problem("paths", node.name, f"{path} is not there", "mount or copy it to the same place on every node")
    if not node.missing:
        yield ok("paths", node.name, "model and data are there")


def _clock(node: NodeInfo) -> Finding:
    text = f"{node.clock_s:+.3f} s from here, known to {node.clock_within_s:.3f} s"
    if abs(node.clock_s) > CLOCK_S + node.clock_within_s:
        return problem("clock", node.name, text, "set it (chronyd, ntpd)")
    return ok("clock", node.name, text)


def _rate(where: str, gb_per_s: float) -> Finding:
    text = f"{gb_per_s:.2f} GB/s through the object store"
    if gb_per_s < SLOW_GB_PER_S:
        fix = "check the network between them (iperf3), and that Ray uses the fast interface (--node-ip-address)"
        return warning("bandwidth", where, text, fix)
    return ok("bandwidth", where, text)
