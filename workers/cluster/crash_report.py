"""Crash report of a dead worker, from the error output that Ray keeps of each process: signal and stack frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SIGNAL = re.compile(r"^\*\*\* (SIG\w+) received", re.MULTILINE)
NATIVE_FRAME = re.compile(
    r"^(?:PC:)?[ \t]+@[ \t]+0x[0-9a-f]+[ \t]+(?:\d+|\(unknown\))[ \t]+(?!\(unknown\))(\S.*)$", re.MULTILINE
)
FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
PYTHON_FRAME = re.compile(r'^  File "(?:.*/site-packages/)?([^"]+)", line (\d+) in (\S+)$', re.MULTILINE)
ABORTED = re.compile(r"^(terminate called .*|[ \t]+what\(\): .*)$", re.MULTILINE)
"""Lines about an exception that no C++ code caught."""
MAX_FRAMES = 4
TAIL_BYTES = 64 << 10


def crash_report(death: str) -> str:
    """Say on one line how a worker's process ended, as far as its error output tells.

    Args:
        death: Ray's account of the death, with process id and node address.

    Returns:
        Signal and innermost frames, native and Python; or that the output tells of no crash. Empty if the account
        names no process, the run itself has ended it, or there is no output. For a process of another node: where its
        output is.
    """
    pid, address = (re.search(pattern, death) for pattern in (r"\bpid: (\d+)", r"\bip: (\S+)"))
    if pid is None or "ray.kill" in death:
        return ""
    name = f"worker-*-{pid[1]}.err"
    own_address, logs = _own_node()
    if logs is None or (address is not None and address[1] != own_address):
        node = "" if address is None else f" of node {address[1]}"
        return f"Its error output is {name} in Ray's logs{node}."
    with suppress(OSError):  # the message goes on without it
        for path in logs.glob(name):
            return summary(_tail(path))
    return ""


def summary(output: str) -> str:
    """Summarise a worker's error output: the signal it died of and the innermost frames."""
    parts = list(_parts(output))
    if not parts:
        return (
            "Its error output tells of no crash: it was killed from outside, as the system does when memory runs out, "
            "or ended itself."
        )
    return "It crashed: " + "; ".join(parts) + "."


def _parts(output: str) -> Iterator[str]:
    yield from (" ".join(line.split()) for line in ABORTED.findall(output))
    if (signal := SIGNAL.search(output)) is not None:
        yield signal[1]
    elif (fatal := FATAL.search(output)) is not None:
        yield fatal[1]
    if native := NATIVE_FRAME.findall(output):
        yield "native frames " + " < ".join(" ".join(frame.split()) for frame in dict.fromkeys(native[:MAX_FRAMES]))
    _, _, stack = output.partition("Fatal Python error")
    _, _, current = stack.partition("Current thread")
    stack = current or stack
    if frames := PYTHON_FRAME.findall(stack)[:MAX_FRAMES]:
        yield "Python frames " + " < ".join(f"{function} ({file}:{line})" for file, line, function in frames)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def _own_node() -> tuple[str | None, Path | None]:
    """Address of this driver's node and the folder of Ray's logs on it; None for each that is not known."""
    from ray._private import worker

    node = worker._global_node
    return (None, None) if node is None else (node.node_ip_address, Path(node.get_logs_dir_path()))
