"""Runs of the campaign over simulated hosts: links are cut while a stage runs, and joined again; workers are killed.

The driver is on the first host with Ray's head, each role on others by label, and one more is free. A cut is shorter or
longer than Ray's heartbeat allows. A host that Ray has given up cannot come back: its raylet ends when the link is
joined, and Ray is started there again, as an operator or a service manager would.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.common.host_cluster import HostCluster
from benchmarks.common.network import Hosts
from benchmarks.common.run_processes import MARK, end_marked
from benchmarks.faults.fault_page import HOSTS
from benchmarks.faults.fault_plan import LifePlan, draw_host_run
from benchmarks.faults.host_faults import HostOperator
from benchmarks.faults.life_checks import GONE_S, SHORT_STEPS, Row, ended, life_command, life_row, run_row
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.temporary_files import FOLDER, is_left

FIRST_SEED = 100
NAMES = ("head", "one", "two", "three", "four")
LABELS = "role=work"
PLACED = (
    *SHORT_STEPS,
    *(f"{role}.nodes={LABELS}" for role in ("rollout", "teacher", "learner")),
    "rollout.cpus_per_worker=1",
    "limits.silence_s=40",  # a host that is cut off is noticed sooner, by Ray's heartbeat
    "limits.start_s=180",
    "profile.peak_tflops=0.1",  # not measured, to start sooner
)
"""Settings of all runs over hosts. A host has one CPU, which one role, or two ranks, take."""
ONE_LEARNER = ("learner.num_workers=1", "learner.cpus_per_worker=1", "teacher.cpus_per_worker=1")
TWO_LEARNERS = ("learner.num_workers=2", "learner.cpus_per_worker=0.5", "teacher.cpus_per_worker=0.5")


def one_host_run(seed: int, lives: int, each: int) -> Row:
    """Train one run over hosts through its lives; the account of it."""
    began = time.monotonic()
    with Hosts(*NAMES) as hosts, tempfile.TemporaryDirectory(prefix="demopsd-hosts-") as name:
        cluster = HostCluster(hosts, Path(name))
        operator = HostOperator(
            cluster,
            lambda host: (
                cluster.start_ray(host, "role=drive", 0) if host == NAMES[0] else cluster.start_ray(host, LABELS, 1)
            ),
        )
        cluster.wait_for_nodes()
        words = [*PLACED, *(TWO_LEARNERS if seed % 2 else ONE_LEARNER)]
        before, rows = files_on_hosts(cluster), []
        for plan in draw_host_run(seed, lives, each):
            rows.append(live_on_hosts(cluster, operator, plan, words))
            print(f"run {seed}, life {len(rows)}: {rows[-1]['summary']}", flush=True)
        row = run_row(seed, rows, RunFolder(cluster.folder / "demo"), files_on_hosts(cluster) - before, began)
        return row | {"kind": HOSTS, "words": words, "lost_without_a_cut": operator.losses}


def live_on_hosts(cluster: HostCluster, operator: HostOperator, plan: LifePlan, words: list[str]) -> Row:
    """Train, or go on training, in one driver until it ends, while the operator plants the faults of its hosts."""
    mark, began = uuid.uuid4().hex, time.monotonic()
    plan_file, record, log = (cluster.folder / f"{kind}-{mark}" for kind in ("plan", "record", "log"))
    settings = [*words, f"ray_address={cluster.address}"]
    command = life_command(plan, cluster.folder, plan_file, record, settings)
    process = cluster.start(cluster.head, command, log.name, {MARK: mark})
    look = operator.follow(record)
    hung = not ended(process, log, look)
    left = [str(process) for process in end_marked(mark, 0 if hung else GONE_S)]
    process.poll()
    operator.settle(look)
    left += operator.left + operator.processes_left(GONE_S)
    return life_row(operator.faults, process.returncode, hung, left, cluster.said(log.name), None, began)


def files_on_hosts(cluster: HostCluster) -> set[str]:
    """Files of shared memory, and temporary files of runs, on each host. A folder of a worker that has ended does not
    count: the next worker on its host removes it."""
    found = set()
    for host in cluster.hosts.names:
        temporary = cluster.temporary(host)
        owned = [path for path in temporary.glob(f"demopsd-*/{FOLDER}/*") if not is_left(path)]
        places = [*cluster.hosts.shared_memory(host).glob("*"), *temporary.glob("vllm_dist_*"), *owned]
        found |= {f"{host}: {path.relative_to(cluster.hosts.folder(host))}" for path in places}
    return found
