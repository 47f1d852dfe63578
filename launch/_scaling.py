"""Rollout workers added to and removed from a running run, by two small files in its folder.

`launch.scale` writes a request, the run carries it out and writes the answer. That works wherever the run folder is
visible, and needs no open port.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.util.errors import DemoPSDError, RunFolderError

if TYPE_CHECKING:
    from workers.rollout.pool import RolloutPool

POLL_S = 0.5


def request_file(folder: RunFolder) -> Path:
    return folder.path / "rollout_workers.wish.json"


def answer_file(folder: RunFolder) -> Path:
    return folder.path / "rollout_workers.answer.json"


def read_message(path: Path) -> dict[str, Any] | None:
    """JSON object of a request or an answer; None if the file is missing or has other content."""
    with suppress(OSError, ValueError):
        message = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(message, dict):
            return message
    return None


@asynccontextmanager
async def scaled_on_request(folder: RunFolder, pool: RolloutPool, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Change the number of rollout workers on request while the block runs."""
    for stale in (request_file(folder), answer_file(folder)):
        stale.unlink(missing_ok=True)  # from before a resume
    following = asyncio.ensure_future(_follow_requests(folder, pool, say))
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def _follow_requests(folder: RunFolder, pool: RolloutPool, say: Callable[[str], None]) -> None:
    """Carry out one request after another. An error is reported at once, to the log and to the caller of
    `launch.scale`; training and this loop continue."""
    done = None
    while True:
        await asyncio.sleep(POLL_S)
        request = read_message(request_file(folder))
        if request is None or request.get("id") == done:
            continue
        done = request.get("id")
        problem = await _carry_out(request.get("workers"), pool, say)
        say(f"rollout workers: {len(pool.group)} serve" + (f"; {problem}" if problem else ""))
        answer = {"id": done, "workers": len(pool.group), "problem": problem}
        try:
            replace_text(answer_file(folder), json.dumps(answer) + "\n")
        except RunFolderError as error:
            say(f"warning: {error}")


async def _carry_out(workers: Any, pool: RolloutPool, say: Callable[[str], None]) -> str | None:
    """Change the number of workers; the reason why that failed, or None."""
    if not isinstance(workers, int) or workers < 1:
        return f"{workers!r} is no number of rollout workers: 1 or more are needed."
    say(f"rollout workers: {workers} are requested, {len(pool.group)} serve")
    try:
        await pool.resize(workers)
    except DemoPSDError as error:
        return str(error)
    except Exception as error:  # a failed change of workers must not end the training run
        return f"{type(error).__name__}: {error}"
    return None
