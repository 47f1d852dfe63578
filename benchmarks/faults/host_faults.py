"""Faults of simulated hosts, planted from outside of them; and the operator who starts Ray again on a lost host."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.host_cluster import HostCluster
from benchmarks.common.run_processes import ROLES, command_of
from benchmarks.faults.fault_plan import CUT
from benchmarks.faults.life_checks import GONE_S

Row = dict[str, Any]
OF_RAY = re.compile(r"/ray/|-m ray\.|bin/ray start|gcs_server|raylet|ray::(IDLE|\w*Agent)")
"""Command lines of Ray's own processes, which live as long as the cluster."""
OF_A_CUT_S = 60.0  # time after a cut in which the end of Ray on the host counts as its consequence
SETTLED_S = 90.0  # time in which links are joined, and lost hosts are started again, after the end of a life


class HostOperator:
    """Plants the faults that a run asks for, joins links again, and starts Ray again on hosts where it has ended.

    Args:
        start_ray: starts Ray on a host.

    Attributes:
        faults: the run's faults so far, with the host of each and what became of it.
        left: processes that outlived Ray on their host; they were killed.
        losses: hosts whose Ray ended without a cut link.
    """

    def __init__(self, cluster: HostCluster, start_ray: Callable[[str], subprocess.Popen[bytes]]) -> None:
        self._cluster, self._start_ray = cluster, start_ray
        self._workers = [name for name in cluster.hosts.names if name != cluster.head]
        self._rays = cluster.start_in_turn(start_ray)
        self._cuts: dict[str, Row] = {}  # the last cut of each host
        self._cut_at: dict[str, float] = {}
        self._ends: dict[str, float] = {}  # time at which Ray's end on a host was seen
        self.faults: list[Row] = []
        self.left: list[str] = []
        self.losses: list[str] = []

    def follow(self, record: Path) -> Callable[[], None]:
        """A function that plants the faults that were appended to the record since its last call, and cares for the
        hosts."""
        self.faults, self.left = [], []
        read = 0

        def look() -> None:
            nonlocal read
            lines = record.read_text().splitlines(keepends=True) if record.exists() else []
            whole = [line for line in lines[read:] if line.endswith("\n")]
            read += len(whole)
            for line in whole:
                self._plant(json.loads(line))
            self._care_for_hosts()

        return look

    def settle(self, look: Callable[[], None]) -> None:
        """Wait, at most `SETTLED_S`, until all links are joined and Ray runs on every host again."""
        give_up = time.monotonic() + SETTLED_S
        while time.monotonic() < give_up:
            look()
            started = all(self._cluster.has_started(host) for host in self._workers)
            if started and not self._ends and not any(self._is_cut(host) for host in self._workers):
                break
            time.sleep(0.2)

    def processes_left(self, within_s: float) -> list[str]:
        """Processes of the hosts that are not Ray's own and are left after that time; they are killed."""
        give_up = time.monotonic() + within_s
        while (left := self._foreign()) and time.monotonic() < give_up:
            time.sleep(0.5)
        return self._killed(left)

    def _foreign(self) -> list[psutil.Process]:
        everyone = [process for host in self._cluster.hosts.names for process in self._cluster.processes(host)]
        return [process for process in everyone if (command := command_of(process)) and not OF_RAY.search(command)]

    def _killed(self, processes: list[psutil.Process]) -> list[str]:
        names = [f"{process.pid} {command_of(process)[:200]}" for process in processes]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return names

    def _is_cut(self, host: str) -> bool:
        return host in self._cuts and "joined" not in self._cuts[host]

    def _plant(self, row: Row) -> None:
        self.faults.append(row)
        if row["planted"] is not None:
            return
        victims = [
            (host, process)
            for host in self._workers
            if not self._is_cut(host)
            for process in self._cluster.role_processes(host, row["target"])
        ]
        row["planted"] = bool(victims)
        if not victims:
            return
        row["host"], victim = victims[int(row["pick"] * len(victims))]
        if row["action"] == CUT:
            row["with"] = [role for role in ROLES if self._cluster.role_processes(row["host"], role)]
            self._cluster.hosts.cut(row["host"])
            self._cuts[row["host"]], self._cut_at[row["host"]] = row, time.monotonic()
        else:
            with suppress(psutil.NoSuchProcess):
                victim.kill()

    def _care_for_hosts(self) -> None:
        now = time.monotonic()
        for host, row in self._cuts.items():
            if self._is_cut(host) and now >= self._cut_at[host] + row["cut_s"]:
                self._cluster.hosts.join(host)
                row["joined"] = True
        for host in self._workers:
            if self._rays[host].poll() is None:
                continue
            if host not in self._ends:
                self._ends[host] = now
                self._record_loss(host, now)
            if not self._is_cut(host):
                self._start_again(host, now)

    def _record_loss(self, host: str, now: float) -> None:
        if not self._cluster.has_started(host):
            return
        row = self._cuts.get(host)
        after_s = now - self._cut_at.get(host, now)
        if row is None or "ray_ended_after_s" in row or after_s > row["cut_s"] + OF_A_CUT_S:
            self.losses.append(host)
        else:
            row["ray_ended_after_s"] = round(after_s, 1)

    def _start_again(self, host: str, now: float) -> None:
        """Start Ray on a host where it has ended, once its processes have ended, or after some time are killed."""
        processes = self._cluster.processes(host)
        if processes and now < self._ends[host] + GONE_S:
            return
        self.left += [f"{host}: {name}" for name in self._killed(processes)]
        del self._ends[host]
        self._rays[host] = self._start_ray(host)
