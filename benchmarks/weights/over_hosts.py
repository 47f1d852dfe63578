"""A cluster of two simulated hosts on this machine, on which `benchmarks.weights` measures itself."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.host_cluster import HostCluster
from benchmarks.common.network import Hosts

SENDERS, RECEIVERS = "host=first", "host=second"


def run_over_hosts(words: Sequence[str]) -> int:
    """Run the benchmark with these words on the first of two hosts; its exit code."""
    with Hosts("first", "second") as hosts, tempfile.TemporaryDirectory() as folder:
        cluster = HostCluster(hosts, Path(folder), heartbeat={})
        for host in hosts.names:
            cluster.start_ray(host, f"host={host}")
        cluster.wait_for_nodes()
        measure = [sys.executable, "-m", "benchmarks.weights", *words, "--joined", cluster.address]
        return cluster.start("first", measure).wait()
