"""Rollout workers added and taken away while a run goes on, by two small files in its folder.

`launch.scale` writes the wish, the run follows it and writes what came of it: that works wherever the run folder can be
seen, and needs no open port.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.util.errors import WorkerError
from workers.rollout.pool import RolloutPool

LOOK_S = 0.5


def wish_file(folder: RunFolder) -> Path:
    return folder.path / "rollout_workers.wish.json"


def answer_file(folder: RunFolder) -> Path:
    return folder.path / "rollout_workers.answer.json"


def read(path: Path) -> dict[str, Any] | None:
    """None where it is not there, or no JSON object."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return None


@asynccontextmanager
async def followed(folder: RunFolder, fleet: RolloutPool, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Inside, the number of rollout workers follows what is wished for."""
    for left in (wish_file(folder), answer_file(folder)):
        left.unlink(missing_ok=True)  # of an earlier life
    following = asyncio.ensure_future(_follow(folder, fleet, say))
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def _follow(folder: RunFolder, fleet: RolloutPool, say: Callable[[str], None]) -> None:
    done = None
    while True:
        await asyncio.sleep(LOOK_S)
        wish = read(wish_file(folder))
        if wish is None or wish.get("id") == done:
            continue
        done, workers = wish.get("id"), wish.get("workers")
        problem = None
        if not isinstance(workers, int) or workers < 1:
            problem = f"{workers!r} is no number of rollout workers: 1 or more are needed."
        else:
            say(f"rollout workers: {workers} are wished for, {len(fleet.group)} serve")
            try:
                await fleet.resize(workers)
            except WorkerError as error:
                problem = str(error)
        say(f"rollout workers: {len(fleet.group)} serve" + (f"; {problem}" if problem else ""))
        answer = {"id": done, "workers": len(fleet.group), "problem": problem}
        replace_text(answer_file(folder), json.dumps(answer) + "\n")
