"""Simulated hosts on one machine: network namespaces with an address each, on a bridge in the first of them.

The machine's own network is not touched. Needs Linux and root's rights.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

NETWORK = "10.213.77"
END_S = 15.0
ENTER = 'hostname "$1"; mount --bind "$2" /etc/hosts; mount --bind "$3" /dev/shm; shift 3; exec "$@"'


class Hosts:
    """Simulated hosts by name, as a context: at its end their processes and namespaces are gone.

    Each has a name, a network and shared memory of its own; all see the files of this machine.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._spaces = {name: f"demopsd-{os.getpid()}-{name}" for name in names}
        self._folder = tempfile.TemporaryDirectory(prefix="hosts")

    def __enter__(self) -> Hosts:
        first, *others = self.names
        try:
            for name in self.names:
                mount = ["mount", "-t", "tmpfs", "demopsd-host", str(self.shared_memory(name))]
                subprocess.run(mount, check=True, capture_output=True, text=True, timeout=30)
                ip("netns", "add", self._spaces[name])
                self._ip(name, "link set lo up")
            self._ip(first, "link add bridge0 type bridge")
            self._settle(first, "bridge0")
            for name in others:
                self._ip(first, f"link add {name} type veth peer name eth0 netns {self._spaces[name]}")
                self.join(name)
                self._settle(name, "eth0")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def address(self, name: str) -> str:
        """Address of a host."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def folder(self, name: str) -> Path:
        """Folder of the host alone; its path is short, as sockets need it."""
        folder = Path(self._folder.name) / name
        folder.mkdir(exist_ok=True)
        return folder

    def shared_memory(self, name: str) -> Path:
        """Folder that is mounted on the host as /dev/shm."""
        folder = self.folder(name) / "shm"
        folder.mkdir(exist_ok=True)
        return folder

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], **how: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process on a host.

        Args:
            how: other arguments of `Popen`.
        """
        names = self.folder(name) / "hosts"
        names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")  # as on Debian its name leads to loopback
        with names.open("a") as file:
            file.writelines(f"{self.address(each)} {each}.cluster\n" for each in self.names)
        enter = ["unshare", "--uts", "sh", "-c", ENTER, "sh", name, str(names), str(self.shared_memory(name))]
        return subprocess.Popen(
            ["ip", "netns", "exec", self._spaces[name], *enter, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **how,
        )

    def cut(self, name: str) -> None:
        """Cut the host off: no packet reaches it or leaves it, and it gets no notice."""
        self._ip(self.names[0], f"link set {name} nomaster down")

    def join(self, name: str) -> None:
        """Connect the host, also again after `cut`."""
        self._ip(self.names[0], f"link set {name} master bridge0 up")

    def pids(self, name: str) -> list[int]:
        """Processes of a host."""
        return [int(word) for word in ip("netns", "pids", self._spaces[name]).split()]

    def close(self) -> None:
        """End all processes and remove the namespaces.

        Raises:
            AssertionError: a process is alive `END_S` after SIGKILL.
        """
        deadline = time.monotonic() + END_S
        while (left := self._left()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        for space in self._spaces.values():
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", space)
        for name in self.names:
            subprocess.run(["umount", "--lazy", str(self.shared_memory(name))], capture_output=True, check=False)
        self._folder.cleanup()
        assert not left, f"processes {left} of simulated hosts are alive {END_S:g} s after SIGKILL; end them by hand"

    def _left(self) -> list[int]:
        pids = []
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                pids += self.pids(name)
        return pids

    def _settle(self, name: str, interface: str) -> None:
        self._ip(name, f"addr add {self.address(name)}/24 dev {interface}")
        self._ip(name, f"link set {interface} up")
        self._ip(name, f"route add default dev {interface}")  # by which Ray finds the address of its host

    def _ip(self, name: str, words: str) -> None:
        ip("-n", self._spaces[name], *words.split())


def ip(*words: str) -> str:
    """Output of iproute2's `ip` with these words."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=30).stdout


def why_not() -> str | None:
    """Reason that hosts cannot be simulated here; None if they can."""
    try:
        with Hosts("first", "second") as hosts:
            done = hosts.start("second", ["true"], os.environ).wait(30)
            return f"a host's first process ended with {done}" if done else None
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return f"simulated hosts need Linux, iproute2 and root's rights: {str(reason).strip()}"
