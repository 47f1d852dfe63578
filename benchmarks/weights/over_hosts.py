"""A cluster of two simulated hosts on this machine, on which `benchmarks.weights` measures itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.network import Hosts

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6379
START_S = 120
SENDERS, RECEIVERS = "host=first", "host=second"


def run_over_hosts(words: Sequence[str]) -> int:
    """Run the benchmark with these words on the first of two hosts; its exit code."""
    with Hosts("first", "second") as hosts, tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.write_text("a" * 64)
        token.chmod(0o600)
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "PYTHONPATH": str(ROOT),
        }
        address = f"{hosts.address('first')}:{PORT}"
        for host, role in (
            ("first", ["--head", f"--port={PORT}", "--include-dashboard=false"]),
            ("second", [f"--address={address}"]),
        ):
            start = [RAY, "start", *role, f"--labels=host={host}", f"--node-name={host}"]
            start += [f"--node-ip-address={hosts.address(host)}", f"--temp-dir={hosts.folder(host)}"]
            start += ["--num-cpus=2", "--disable-usage-stats", "--block"]
            with (Path(folder) / host).open("w") as log:
                hosts.start(host, start, environment, stdout=log, stderr=subprocess.STDOUT)
        wait = ["-m", "launch.wait_for_nodes", address, "first", "second", "--within", str(START_S)]
        if code := hosts.start("first", [sys.executable, *wait], environment, cwd=ROOT).wait(START_S + 30):
            print(*((Path(folder) / host).read_text() for host in hosts.names), sep="\n", file=sys.stderr)
            return code
        measure = [sys.executable, "-m", "benchmarks.weights", *words, "--joined", address]
        return hosts.start("first", measure, environment, cwd=ROOT).wait()
