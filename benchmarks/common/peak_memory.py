"""What the actors of a run have held in memory."""

from __future__ import annotations

import sys
from pathlib import Path

from workers.actors import RayActors


def held(_: object) -> tuple[float, float]:
    """Runs in an actor: the most that its process has held since it began, of the host's memory (shared pages counted)
    and of its GPU's, GiB."""
    status = Path("/proc/self/status").read_text()
    torch = sys.modules.get("torch")
    reserved = torch.cuda.max_memory_reserved() if torch is not None and torch.cuda.is_initialized() else 0
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20, reserved / 2**30


def held_from_now(_: object) -> None:
    """Runs in an actor: what its process held of the host's memory before does not count."""
    Path("/proc/self/clear_refs").write_text("5")


async def peaks(actors: RayActors, within_s: float = 60.0) -> tuple[dict[str, float], dict[str, float]]:
    """Of the largest actor of each role, GiB: host, and GPU where it has one."""
    host, gpu = {}, {}
    for role, group in actors.groups.items():
        found = await group.each(
            lambda worker, _: worker.__ray_call__.remote(held), within_s=within_s, what="the memory it has held"
        )
        host[role], gpu[role] = (max(values) for values in zip(*found, strict=True))
    return host, {role: reserved for role, reserved in gpu.items() if reserved}
