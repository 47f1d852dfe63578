"""One run over three simulated hosts with addresses, names and mounts of their own: each role is placed by its label,
and one host is cut off in the middle of the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.common.host_cluster import ROOT, HostCluster
from benchmarks.common.network import Hosts, why_not
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.folder import RunFolder

NOTICED_S = 20
SMALL = (
    "rollout.num_workers=1",
    "rollout.prompts_per_step=8",
    "data.minisci_train_size=64",
    "data.test=null",
    "data.ood=null",
    "leakage.every_steps=0",
    "checkpoint.every_steps=1",
    "evaluation.at_start=false",
    "evaluation.samples=1",
    "sinks.report=false",
)
MEET = """
import sys
from datetime import timedelta
import torch
from torch import distributed
from workers.cluster.ranks import meet_on
rank, mine, first = sys.argv[1:]
meet_on(mine)
where = f"tcp://{first}:29500"
distributed.init_process_group("gloo", init_method=where, rank=int(rank), world_size=2, timeout=timedelta(seconds=30))
summed = torch.ones(1)
distributed.all_reduce(summed)
assert summed == 2
"""
BROADCAST = """
import json, sys, time
from pathlib import Path
import torch
from workers.weights.process_group import GroupMeeting, GroupMember, open_meeting
rank, mine, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
if rank == 0:
    meeting, store = open_meeting("hosts", mine, 2, 30, on_gpus=False)
    path.with_suffix(".new").write_text(json.dumps(vars(meeting)))
    path.with_suffix(".new").rename(path)
    member = GroupMember(meeting, rank, mine, store)
else:
    while not path.exists():
        time.sleep(0.1)
    member = GroupMember(GroupMeeting(**json.loads(path.read_text())), rank, mine)
sent = torch.arange(1 << 20)
data = sent.clone() if rank == 0 else torch.zeros_like(sent)
member.wait(member.start_broadcast(data))
assert torch.equal(data, sent)
time.sleep(1)
"""
pytestmark = [pytest.mark.real, pytest.mark.long]


class Cluster(HostCluster):
    """Ray on three hosts, with a token. The code of the last is stale until `mend`."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        super().__init__(hosts, folder)
        self._stale = ROOT / "workers" / "weights" / "canary.py"
        old = folder / "canary.py"
        old.write_text(self._stale.read_text() + "\n# of yesterday\n")
        self.start_ray("head", "role=sample")
        self.start_ray("one", "role=learn,host=one")
        replaced = f'mount --bind {old} {self._stale}; exec "$@"'
        self._two = self.start_ray("two", "role=learn,host=two", through=["sh", "-c", replaced, "sh"])
        self.wait_for_nodes()

    def mend(self) -> None:
        """Bring the checkout of the last host up to date."""
        mounts = f"--mount=/proc/{self._two.pid}/ns/mnt"
        subprocess.run(["nsenter", mounts, "umount", str(self._stale)], check=True, timeout=30)

    def train(self, log: str, *words: str) -> subprocess.Popen[bytes]:
        settings = [*SMALL, f"ray_address={self.address}", f"output_dir={self.folder / 'runs'}", *words]
        return self.start("head", [sys.executable, "-m", "launch.train", "configs/demo.yaml", *settings], log)

    def runs(self, host: str, role: str) -> bool:
        """Whether the host has a process of this role."""
        return bool(self.role_processes(host, role))

    def wait_until(
        self, what: str, ready: Callable[[], bool], run: subprocess.Popen[bytes], log: str, s: float
    ) -> None:
        deadline = time.monotonic() + s
        while not ready():
            assert run.poll() is None, self.said(log)
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.said(log)}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Hosts("head", "one", "two") as hosts:
        yield Cluster(hosts, tmp_path_factory.mktemp("hosts"))


def test_a_host_with_a_stale_checkout_is_refused_by_name(cluster: Cluster) -> None:
    words = [f"{role}.nodes=host=two" for role in ("rollout", "teacher", "learner")]
    run = cluster.train("stale", *words, "name=stale")
    assert run.wait(90) == 2, cluster.said("stale")
    last = cluster.said("stale").splitlines()[-1]
    assert last.startswith(
        f"error: two ({cluster.hosts.address('two')}): its code is not that of this machine: digest "
    )
    assert "1 files differ, workers/weights/canary.py first. Bring " in last
    cluster.mend()


def test_ranks_of_two_hosts_meet_though_their_names_lead_to_loopback(cluster: Cluster) -> None:
    hosts = cluster.hosts
    ranks = [
        hosts.start(
            name,
            [sys.executable, "-c", MEET, str(rank), hosts.address(name), hosts.address("one")],
            cluster.environment,
        )
        for rank, name in enumerate(("one", "two"))
    ]
    assert [rank.wait(60) for rank in ranks] == [0, 0]


def test_a_process_group_of_weights_spans_two_hosts(tmp_path: Path) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    meeting = str(tmp_path / "meeting")
    with Hosts("sender", "receiver") as hosts:
        members = [
            hosts.start(
                name, [sys.executable, "-c", BROADCAST, str(rank), hosts.address(name), meeting], os.environ, cwd=ROOT
            )
            for rank, name in enumerate(hosts.names)
        ]
        assert [member.wait(60) for member in members] == [0, 0]


def test_a_host_that_is_cut_off_is_noticed_and_its_work_done_elsewhere(cluster: Cluster) -> None:
    words = ["rollout.nodes=role=sample", "teacher.nodes=role=learn", "learner.nodes=role=learn", "steps=4"]
    run = cluster.train("log", *words)
    cluster.wait_until("step 2", lambda: "step 2/4" in cluster.said("log"), run, "log", 150)
    assert cluster.runs("head", "rollout")
    assert not cluster.runs("head", "learner")
    lost, other = ("one", "two") if cluster.runs("one", "learner") else ("two", "one")
    assert cluster.runs(lost, "learner")
    assert not cluster.runs(other, "learner")
    cluster.hosts.cut(lost)
    began = time.monotonic()
    cluster.wait_until("notice", lambda: "are restarted" in cluster.said("log"), run, "log", NOTICED_S)
    print(f"noticed after {time.monotonic() - began:.1f} s")
    cluster.wait_until("others", lambda: cluster.runs(other, "learner"), run, "log", 60)
    assert run.wait(120) == 0, cluster.said("log")
    said = cluster.said("log")
    assert "weights by object_store" in said
    folder = cluster.folder / "runs" / "demo"
    account = audit(RunFolder(folder))
    assert (account.faults, account.steps, len(account.lives)) == ([], 4, 2)
