"""A process group of learner 0 and every process that receives weights: gloo where they hold them in main memory, NCCL
where they hold them on GPUs.

It stands beside the process groups of DeepSpeed, FSDP and vLLM and shares nothing with them: each group has a store of
its own, on a free port of learner 0's node, and ends with it. A group whose member has died or hangs is of no more use;
every member leaves it, and those that are left join a new one.

Every wait has a limit. A member that notices a failure leaves at once: its connections close, and the others notice it
too, before their own limit.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from demopsd_dist.util.environment_variable import environment_variable
from demopsd_dist.util.errors import BrokenGroupError
from workers.weights.arrival_memory import ArrivalMemory

PUBLISHING_GROUP = "publishing group"  # part of every message of a `BrokenGroupError`
POLL_S = 0.0005
SENDER = 0  # rank of learner 0 in every group


@dataclass(frozen=True)
class GroupMeeting:
    """The store at which the members of a new group meet.

    Attributes:
        name: prefix of the group's keys, another for each group.
        size: number of processes, learner 0 among them.
        within_s: limit of joining and of each transfer, seconds.
        on_gpus: whether the members hold the weights on GPUs.
    """

    name: str
    host: str
    port: int
    size: int
    within_s: float
    on_gpus: bool = False


def open_meeting(name: str, host: str, size: int, within_s: float, *, on_gpus: bool) -> tuple[GroupMeeting, Any]:
    """Open a store for a new group on this machine, reachable at the address `host` alone.

    Returns:
        The meeting, and the store, which ends when it is dropped.
    """
    from torch.distributed import TCPStore

    listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listening.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=within_s),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return GroupMeeting(name, host, port, size, within_s, on_gpus), store


class GroupMember:
    """Membership of this process in a group.

    Args:
        address: address of this machine by which the others reach it.
        store: the store itself, in the process that has opened the meeting.

    Attributes:
        memory: for buckets that arrive in main memory.

    Raises:
        BrokenGroupError: the others did not join within `meeting.within_s`.
    """

    def __init__(self, meeting: GroupMeeting, rank: int, address: str, store: Any = None) -> None:
        from torch.distributed import PrefixStore, TCPStore

        self._meeting, self._rank = meeting, rank
        # Only here: whoever holds a transfer keeps the connections open, and so does a traceback.
        self._transfers: dict[int, Any] = {}
        self._started = 0
        self.memory = ArrivalMemory()
        limit = timedelta(seconds=meeting.within_s)
        self.device = torch.device("cuda", torch.cuda.current_device()) if meeting.on_gpus else torch.device("cpu")
        try:
            self._store = store or TCPStore(meeting.host, meeting.port, is_master=False, timeout=limit)
            keys = PrefixStore(meeting.name, self._store)
            make = _nccl_group if meeting.on_gpus else _gloo_group
            self._group: Any = make(keys, rank, meeting.size, limit, address)
        except RuntimeError as error:
            raise self._broken("could not be joined", error) from None

    def start_broadcast(self, data: Tensor) -> int:
        """Start to send these bytes from learner 0, or to receive them into `data`. All members start the same
        broadcasts in the same order.

        Returns:
            Number of the transfer, for `wait`.

        Raises:
            BrokenGroupError: the group is broken.
        """
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = SENDER
        try:
            transfer = self._open_group().broadcast([data], options)
        except RuntimeError as error:
            raise self._broken("failed", error) from None
        self._started += 1
        self._transfers[self._started] = transfer
        return self._started

    def wait(self, number: int) -> None:
        """Wait until a transfer has ended.

        Raises:
            BrokenGroupError: it failed, or took longer than the meeting's limit.
        """
        give_up = time.monotonic() + self._meeting.within_s
        while not self._transfer(number).is_completed():
            if time.monotonic() > give_up:
                raise self._broken(f"took longer than {self._meeting.within_s:g} s for one bucket")
            time.sleep(POLL_S)
        try:
            self._transfer(number).wait()
        except RuntimeError as error:
            raise self._broken("failed", error) from None
        self._transfers.pop(number, None)

    def _transfer(self, number: int) -> Any:
        if number not in self._transfers:
            raise self._broken("is closed")
        return self._transfers[number]

    def refuse_closed(self) -> None:
        """Check that this process has not left the group.

        Raises:
            BrokenGroupError: it has.
        """
        self._open_group()

    def _open_group(self) -> Any:
        if (group := self._group) is None:
            raise self._broken("is closed")
        return group

    def close(self) -> None:
        """Leave the group. Its connections close in the background, since transfers under way may still be waiting."""
        group, self._group = self._group, None
        store, self._store = self._store, None
        self._transfers.clear()
        if group is not None:
            threading.Thread(target=_end, args=([group, store],), daemon=True).start()

    def _broken(self, what: str, error: Exception | None = None) -> BrokenGroupError:
        """Leave the group, and describe why."""
        if hasattr(self, "_group"):
            self.close()
        detail = "" if error is None else f": {_first_sentence(error)}"
        return BrokenGroupError(
            f"the publishing group {self._meeting.name} ({self._meeting.size} processes, rank {self._rank} "
            f"here) {what}{detail}"
        )


def _gloo_group(keys: Any, rank: int, size: int, limit: timedelta, address: str) -> Any:
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=address, lazy_init=False)]
    options._timeout = limit
    return ProcessGroupGloo(keys, rank, size, options)


def _nccl_group(keys: Any, rank: int, size: int, limit: timedelta, address: str) -> Any:
    """Group whose watchdog only reports a failure. By default it ends the process; its own limit is longer than ours,
    after which `GroupMember` aborts the group."""
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = 2 * limit
    with environment_variable("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2"):  # read when a group is made
        return ProcessGroupNCCL(keys, rank, size, options)


def _first_sentence(error: Exception) -> str:
    """First sentence of a message of torch, without the place in its source."""
    return re.sub(r"^\[[^\]]*\] *", "", str(error).splitlines()[0]).partition(". ")[0]


def _end(held: list[Any]) -> None:
    """Abort a group, and drop the last references to it and its store."""
    group = held.pop(0)
    if group.name() == "nccl":  # gloo closes its connections when it is dropped
        group.abort()
