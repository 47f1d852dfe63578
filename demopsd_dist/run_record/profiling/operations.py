"""Operations of torch in the processes of a step: their calls, seconds and rates, as a table and as traces.

Written for the steps of `profile.steps` where `profile.operations` is set, into `operations-step-000012/` of the run
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from demopsd_dist.run_record.folder import replace_text, writing

SHOWN = 20  # operations of a process in the table


class Operation(NamedTuple):
    """Calls of an operation of torch, added up.

    Example: `Operation("aten::mm", "512x576, 576x1536", 210, 1.25, 1.9e11)`
    """

    name: str
    shapes: str
    """Shapes of the operands of a matrix product; empty for other operations, whose shapes are added up."""
    calls: int
    self_s: float
    """Seconds without those of the operations that it calls: of the GPU where there is one, else of the CPU."""
    flops: float
    """Floating-point operations of all calls; 0 where torch does not count them."""


@dataclass(frozen=True)
class ProcessOperations:
    """Operations of one process in a step."""

    process: str
    seconds: float
    """Seconds between start and end of the profiler."""
    operations: Sequence[Operation]
    trace: bytes
    """Every call with its times, in the Trace Event Format, compressed by gzip."""


def write(folder: Path, step: int, processes: Sequence[ProcessOperations]) -> None:
    """Write the table of all processes, and a trace of each.

    Raises:
        RunFolderError: a file cannot be written.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)
    for one in processes:
        path = folder / f"{one.process.replace(' ', '-')}.json.gz"
        with writing(path):
            path.write_bytes(one.trace)
    replace_text(folder / "operations.md", operations_page(processes, step))


def operations_page(processes: Sequence[ProcessOperations], step: int) -> str:
    """Markdown page with the longest operations of each process."""
    intro = [
        f"# Operations of torch in step {step}",
        "",
        "Seconds of an operation are its own, without those of the operations that it calls. Matrix products are "
        "listed by the shapes of their operands. Recording makes a step slower: compare shares, not seconds. The last "
        "row of a table has what no operation covers: Python, libraries with kernels of their own, and waiting.",
        "",
    ]
    return "\n".join([*intro, *(line for one in processes for line in _section(one))])


def _section(one: ProcessOperations) -> list[str]:
    ordered = sorted(one.operations, key=lambda operation: -operation.self_s)
    shown, others = ordered[:SHOWN], ordered[SHOWN:]
    rows = [_row(operation, one.seconds) for operation in shown]
    if others:
        calls, seconds = sum(o.calls for o in others), sum(o.self_s for o in others)
        rows.append(_row(Operation(f"{len(others)} others", "", calls, seconds, 0.0), one.seconds))
    outside = one.seconds - sum(operation.self_s for operation in ordered)
    rows.append(["outside of operations", "", "", f"{outside:.3f}", f"{outside / one.seconds:.0%}", ""])
    lines = ["| operation | shapes | calls | seconds | share | GFLOP/s |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return [f"## {one.process}, {one.seconds:.2f} s", "", *lines, ""]


def _row(operation: Operation, seconds: float) -> list[str]:
    rate = f"{operation.flops / operation.self_s / 1e9:.0f}" if operation.flops and operation.self_s else ""
    name = f"`{operation.name}`" if "::" in operation.name else operation.name
    share = f"{operation.self_s / seconds:.0%}"
    return [name, operation.shapes, str(operation.calls), f"{operation.self_s:.3f}", share, rate]
