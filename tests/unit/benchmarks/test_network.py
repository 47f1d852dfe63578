"""Simulated hosts: they reach each other except while a link is cut, and their shared memory is their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.common.network import Hosts, why_not

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7000), timeout=1).close()"
SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
open("/dev/shm/ready", "w").close()
while True:
    server.accept()[0].close()
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Hosts("first", "second", "third") as hosts:
        yield hosts


def run_on(hosts: Hosts, name: str, code: str, *words: str) -> int:
    how = {"stderr": subprocess.DEVNULL}
    return hosts.start(name, [sys.executable, "-c", code, *words], os.environ, **how).wait(30)


def test_a_link_is_cut_and_joined_again(hosts: Hosts) -> None:
    server = hosts.start("second", [sys.executable, "-c", SERVE, hosts.address("second")], os.environ)
    ready = hosts.shared_memory("second") / "ready"
    give_up = time.monotonic() + 20
    while not ready.exists():
        assert server.poll() is None
        assert time.monotonic() < give_up
    assert server.pid in hosts.pids("second")
    reached = [run_on(hosts, "third", CONNECT, hosts.address("second"))]
    hosts.cut("second")
    reached.append(run_on(hosts, "third", CONNECT, hosts.address("second")))
    hosts.join("second")
    reached.append(run_on(hosts, "third", CONNECT, hosts.address("second")))
    assert reached == [0, 1, 0]


def test_shared_memory_is_the_hosts_own(hosts: Hosts) -> None:
    assert run_on(hosts, "first", "open('/dev/shm/mine', 'w').close()") == 0
    assert run_on(hosts, "first", "open('/dev/shm/mine')") == 0
    assert run_on(hosts, "third", "open('/dev/shm/mine')") == 1
    assert not os.path.exists("/dev/shm/mine")
