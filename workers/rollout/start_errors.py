"""Errors of vLLM at the start of an engine: the last line of vLLM's message, and its full text for a file in the run
folder."""

from __future__ import annotations

import re
import traceback

from demopsd_dist.util.errors import DemoPSDError, EngineStartError

_NO_REASON = re.compile(r"For further information visit|^See (root cause|stack trace)", re.IGNORECASE)
_VALUES = re.compile(r"\s*\[type=\w+, input_value=.*$")  # pydantic repeats all arguments here


def engine_start_error(rank: int, error: Exception) -> DemoPSDError:
    """The error of a worker whose engine did not start; the project's own errors stay as they are."""
    if isinstance(error, DemoPSDError):
        return error
    full_text = "".join(traceback.format_exception(error))
    return EngineStartError(
        f"rollout {rank}: vLLM cannot start an engine: {type(error).__name__}: {reason_line(str(error))}",
        rank,
        full_text,
    )


def reason_line(message: str) -> str:
    """The last line of a message that gives a reason.

    Example: `reason_line("1 validation error\\n  Value error, no such dtype [type=value_error, input_value=...]\\n"
    "    For further information visit ...")` gives `"Value error, no such dtype"`.
    """
    lines = [_VALUES.sub("", line).strip() for line in message.splitlines()]
    reasons = [line for line in lines if line and not _NO_REASON.search(line)]
    return reasons[-1] if reasons else message.strip() or "it gives no reason"
