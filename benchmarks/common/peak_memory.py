"""Peak memory of the actors of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from workers.actors import RayActors


def process_peak_gib(_: object) -> tuple[float, float]:
    """Peak memory of this process, GiB: on the host (shared pages counted) since its start or the last `reset_peak`,
    and what torch reserved on its GPU since its start. Runs in an actor."""
    status = Path("/proc/self/status").read_text()
    torch = sys.modules.get("torch")
    reserved = torch.cuda.max_memory_reserved() if torch is not None and torch.cuda.is_initialized() else 0
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20, reserved / 2**30


def reset_peak(_: object) -> None:
    """Restart the measurement of the process's peak on the host from its present size. Runs in an actor."""
    Path("/proc/self/clear_refs").write_text("5")


async def peak_gib_by_role(actors: RayActors, within_s: float = 60.0) -> tuple[dict[str, float], dict[str, float]]:
    """Peak memory of the largest actor of each role, GiB: on the host, and on its GPU for the roles that use one."""
    host, gpu = {}, {}
    for role, group in actors.groups.items():
        peaks = await group.each(
            lambda worker, _: worker.run(process_peak_gib), within_s=within_s, what="its peak memory"
        )
        host[role], gpu[role] = (max(values) for values in zip(*peaks, strict=True))
    return host, {role: reserved for role, reserved in gpu.items() if reserved}
