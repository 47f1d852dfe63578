"""Ranks of a process group: the address at which they meet, and the network interface that leads there."""

from __future__ import annotations

import os
import socket
from collections import Counter

import psutil
import ray

MeetingPoint = tuple[str, int]  # address and port of rank 0


class Rank:
    """An actor that is one rank of a process group: a learner or a teacher worker."""

    def address(self) -> MeetingPoint:
        """Address of this actor's node and a free port there, for a group of which it is rank 0."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def prepare(self) -> None:
        """Do the part of the start that waits for no other rank and needs no GPU memory: import libraries, and on
        learners load the model and try it."""
        raise NotImplementedError

    def start(self, meeting_point: MeetingPoint) -> None:
        """Join the process group at the meeting point, with the model on the device."""
        raise NotImplementedError

    def forward_counts(self) -> Counter[str]:
        """Responses that went through each kind of forward since the start."""
        raise NotImplementedError

    def peak_flops(self) -> float:
        """Measure the peak rate of matrix products on this rank's device, operations/s."""
        raise NotImplementedError


def interface_of(address: str) -> str | None:
    """Network interface of this machine that has the address."""
    names = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(interface_address.address == address for interface_address in addresses)
    ]
    return names[0] if names else None


def meet_on(address: str) -> None:
    """Let gloo's ranks of this process meet through the interface of this machine that has the address, unless the
    environment names another. By default gloo uses the interface of the host name's address, which on many machines is
    loopback."""
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
