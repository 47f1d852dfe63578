"""Processes that compute together: where they meet, and through which network interface."""

from __future__ import annotations

import os
import socket

import psutil
import ray

MeetingPoint = tuple[str, int]  # address and port of rank 0


class Rank:
    """An actor that may be rank 0 of a process group."""

    def address(self) -> MeetingPoint:
        """Where rank 0 can be met: its node's address and a free port there."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the address."""
    found = [name for name, each in psutil.net_if_addrs().items() if any(one.address == address for one in each)]
    return found[0] if found else None


def meet_on(address: str) -> None:
    """gloo's ranks of this process meet through the interface of this machine that has the address, unless the
    environment names another. By itself gloo goes where the host's name leads, which on many machines is loopback."""
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
