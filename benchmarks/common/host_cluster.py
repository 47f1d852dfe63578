"""Ray on simulated hosts: a head and hosts that join it, with a token."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.common.network import Hosts
from benchmarks.common.run_processes import of_role
from demopsd_dist.util.code_caches import CODE_CACHES, MACHINE_TMPDIR, private_folder

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6379
START_S, START_TRIES = 120, 3
STARTED = "Ray runtime started"
HEARTBEAT = {  # a host that does not answer is given up after at most 4 times 1 + 2 seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
HEARTBEAT_S = 12.0
"""Longest time in which Ray gives up a host that does not answer, with `HEARTBEAT`."""


class HostCluster:
    """Ray on simulated hosts, the first of which is the head; each host has temporary files of its own.

    Args:
        folder: for logs and the token.
        heartbeat: variables of Ray's heartbeat; Ray's own values without any.
    """

    def __init__(self, hosts: Hosts, folder: Path, heartbeat: Mapping[str, str] = HEARTBEAT) -> None:
        self.hosts, self.folder = hosts, folder
        token = folder / "token"
        token.write_text("a" * 64)
        token.chmod(0o600)
        caches = {variable: str(private_folder() / "code" / name) for variable, name in CODE_CACHES.items()}
        self.environment = (
            {key: value for key, value in os.environ.items() if key not in (MACHINE_TMPDIR, "RAY_TMPDIR")}
            | {variable: os.environ.get(variable, cache) for variable, cache in caches.items()}
            | dict(heartbeat)
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                "PYTHONPATH": str(ROOT),
            }
        )
        self.head = hosts.names[0]
        self.address = f"{hosts.address(self.head)}:{PORT}"
        self._ray_starts = 0
        self._ray_logs: dict[str, str] = {}

    def start_ray(self, host: str, labels: str, cpus: int = 2, through: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start Ray on a host: the head, or one that joins it. The process ends with Ray's.

        Args:
            through: command that starts the command behind it.
        """
        self._ray_starts += 1
        sessions = self.hosts.folder(host) / str(self._ray_starts)
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        words = role if host == self.head else [f"--address={self.address}"]
        words += [f"--labels={labels}", f"--node-name={host}", f"--node-ip-address={self.hosts.address(host)}"]
        words += [f"--temp-dir={sessions}", f"--num-cpus={cpus}", "--disable-usage-stats", "--block"]
        self._ray_logs[host] = f"ray-{host}-{self._ray_starts}"
        return self.start(host, [*through, RAY, "start", *words], self._ray_logs[host])

    def has_started(self, host: str) -> bool:
        """Whether the last start of Ray on the host has succeeded."""
        return STARTED in self.said(self._ray_logs[host])

    def start_in_turn(self, start_ray: Callable[[str], subprocess.Popen[bytes]]) -> dict[str, subprocess.Popen[bytes]]:
        """Start Ray on the head, then on two hosts at a time: Ray's own limit of 30 s is short for all at once if the
        machine is busy.

        Returns:
            Ray's process of each host; it may have ended, after `START_TRIES`.
        """
        rays: dict[str, subprocess.Popen[bytes]] = {}
        others = self.hosts.names[1:]
        for together in [(self.head,), *(others[i : i + 2] for i in range(0, len(others), 2))]:
            for _ in range(START_TRIES):
                rays |= {
                    host: start_ray(host) for host in together if host not in rays or rays[host].poll() is not None
                }
                while any(rays[host].poll() is None and not self.has_started(host) for host in together):
                    time.sleep(0.2)
        return rays

    def wait_for_nodes(self) -> None:
        """Wait until all hosts have joined.

        Raises:
            AssertionError: they have not, within `START_S`.
        """
        wait = ["-m", "launch.wait_for_nodes", self.address, *self.hosts.names, "--within", str(START_S)]
        code = self.start(self.head, [sys.executable, *wait], "nodes").wait(START_S + 30)
        assert code == 0, "\n".join(self.said(log) for log in ("nodes", *self._ray_logs.values()))

    def start(
        self, host: str, command: Sequence[str], log: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process on a host, in the checkout.

        Args:
            log: name of the file in the folder to which its output is appended; None leaves it on this process's.
            more: variables of its environment.
        """
        temporary = self.temporary(host)
        environment = self.environment | {"TMPDIR": str(temporary)} | dict(more or {})
        if log is None:
            return self.hosts.start(host, command, environment, cwd=ROOT)
        with (self.folder / log).open("a") as file:
            return self.hosts.start(host, command, environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

    def temporary(self, host: str) -> Path:
        """Folder of the host's temporary files."""
        folder = self.hosts.folder(host) / "tmp"
        folder.mkdir(exist_ok=True)
        return folder

    def said(self, log: str) -> str:
        """Output in a log."""
        path = self.folder / log
        return path.read_text(errors="replace") if path.exists() else ""

    def processes(self, host: str) -> list[psutil.Process]:
        """Living processes of a host."""
        return [process for pid in self.hosts.pids(host) if (process := living(pid)) is not None]

    def role_processes(self, host: str, role: str) -> list[psutil.Process]:
        """Living processes of a role on a host."""
        return of_role(role, self.processes(host))


def living(pid: int) -> psutil.Process | None:
    """The process with this id; None if it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None
