"""`launch.doctor` on a cluster of two nodes on this machine, with token authentication."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import refuse_left

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
START_S = 90


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address and environment of a head and one more node, a CPU each."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("a" * 64)
    mark = uuid.uuid4().hex
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONPATH": str(ROOT),
        "DEMOPSD_TEST_MARK": mark,
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    common = ["--num-cpus=1", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false", *common]
    nodes = [start(["--node-name=first", *head], environment)]
    nodes.append(start(["--node-name=second", f"--address={address}", *common], environment))
    try:
        wait = [sys.executable, "-m", "launch.wait_for_nodes", address, "first", "second", "--within", str(START_S)]
        subprocess.run(wait, env=environment, cwd=ROOT, check=True, timeout=START_S + 30)
        yield address, environment
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(30)
        refuse_left(mark)


def start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [RAY, "start", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )


def examine(cluster: tuple[str, dict[str, str]], *words: str) -> subprocess.CompletedProcess[str]:
    address, environment = cluster
    command = [sys.executable, "-m", "launch.doctor", "configs/demo.yaml", f"ray_address={address}", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_every_node_is_checked(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    done = examine(cluster, f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the cluster: 2 answered" in done.stdout
    assert re.findall(r"ok +code +(\w+) \([\d.]+\): digest \w{16}, as here", done.stdout) == ["first", "second"]
    assert len(re.findall(r"known to 0\.\d+ s", done.stdout)) == 2
    rates = [float(rate) for rate in re.findall(r"([\d.]+) GB/s through the object store", done.stdout)]
    assert len(rates) == 2
    assert min(rates) > 0


def test_claims_beyond_the_nodes_are_a_problem(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    done = examine(cluster, f"output_dir={tmp_path}", "learner.num_workers=9")
    assert done.returncode == 1
    assert re.search(r"PROBLEM +processors +the cluster: .* need 4.8 CPUs; there are 2\.", done.stdout)
    assert done.stdout.endswith("1 problem\n")
