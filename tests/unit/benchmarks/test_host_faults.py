"""Faults of hosts: links are cut and joined again, workers killed, and Ray is started again where it has ended."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.common.host_cluster import HostCluster
from benchmarks.common.network import Hosts, why_not
from benchmarks.common.run_processes import command_of
from benchmarks.faults import host_faults
from benchmarks.faults.host_faults import HostOperator


class ClusterWithoutRay(HostCluster):
    """Hosts on which processes of other names stand for Ray's."""

    def has_started(self, host: str) -> bool:
        return True


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[HostCluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Hosts("head", "one", "two") as hosts:
        yield ClusterWithoutRay(hosts, tmp_path)


def start_named(cluster: HostCluster, host: str, name: str) -> subprocess.Popen[bytes]:
    """Process on a host that only has that name and waits."""
    process = cluster.start(host, ["bash", "-c", f'exec -a "{name}" sleep 1000'], "log")
    wait_until(lambda: any(command_of(each).startswith(name) for each in cluster.processes(host)))
    return process


def wait_until(ready: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def is_up(cluster: HostCluster, host: str) -> bool:
    words = ["ip", "netns", "exec", cluster.hosts._spaces["head"], "cat", f"/sys/class/net/{host}/operstate"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "up"


def ask(record: Path, target: str, action: str, cut_s: float = 0.0) -> None:
    row = {"stage": "learn", "target": target, "action": action, "pick": 0.5, "cut_s": cut_s, "planted": None}
    with record.open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_faults_of_hosts_are_planted_and_lost_hosts_started_again(cluster: HostCluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    operator = HostOperator(cluster, lambda host: start_named(cluster, host, "raylet"))
    rays = dict(operator._rays)
    learner = start_named(cluster, "one", "ray::LearnerWorker")
    look = operator.follow(record)

    ask(record, "learner", "cut", 5.0)  # long enough for the looks below on a busy machine
    ask(record, "learner", "SIGKILL")  # is on a host that cannot be reached, so there is none
    ask(record, "teacher", "SIGKILL")
    look()
    assert not is_up(cluster, "one")
    assert is_up(cluster, "two")
    cut = operator.faults[0]
    assert (cut["host"], cut["with"]) == ("one", ["learner"])
    assert [fault["planted"] for fault in operator.faults] == [True, False, False]
    rays["one"].kill()  # as Ray's server gives the host up
    rays["one"].wait()
    look()
    assert operator._rays["one"] is rays["one"], "a host is not started while its link is cut"
    give_up = time.monotonic() + 20
    while not is_up(cluster, "one") and time.monotonic() < give_up:
        look()
    assert cut["joined"]
    assert 0 <= cut["ray_ended_after_s"] < 20

    assert operator.left == [], "the host's processes have some time to end"
    learner.kill()
    learner.wait()
    operator.settle(look)
    assert operator._rays["one"].poll() is None
    assert operator.left == operator.losses == []

    worker = start_named(cluster, "two", "ray::RolloutWorker")
    ask(record, "rollout", "SIGKILL")
    look()
    assert worker.wait(5) == -9
    rays["two"].kill()
    rays["two"].wait()
    operator.settle(look)
    assert operator.losses == ["two"]


def test_processes_that_outlive_a_host_or_a_life_are_named_and_killed(cluster: HostCluster, tmp_path: Path) -> None:
    operator = HostOperator(cluster, lambda host: start_named(cluster, host, "raylet"))
    rays = dict(operator._rays)
    idle, engine = start_named(cluster, "one", "ray::IDLE"), start_named(cluster, "one", "VLLM::EngineCore")
    served = start_named(cluster, "head", "python -m ray.util.client.server")
    (left,) = operator.processes_left(0.1)
    assert "VLLM::EngineCore" in left
    assert engine.wait(5) == -9
    assert operator.processes_left(0) == []
    assert served.poll() is None
    look = operator.follow(tmp_path / "record")
    rays["one"].kill()
    rays["one"].wait()
    look()
    operator._ends["one"] -= host_faults.GONE_S
    look()
    assert len(operator.left) == 1
    assert "one: " in operator.left[0]
    assert idle.wait(5) == -9
