"""Profiler of the operations that torch runs in an actor's process (`torch.profiler`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from demopsd_dist.run_record.profiling.operations import Operation, ProcessOperations

PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})  # torch counts their operations


class OperationProfiler:
    """Records every operation of torch from now to `stop`, in this thread and in those of its backward passes.

    Args:
        process: name of the process, for the table.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._on_gpu = bool(gpu)
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True, with_flops=True)
        self._profile.start()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """End the recording, in the thread that it was started in."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._started
        self._profile.stop()

    def result(self) -> ProcessOperations:
        """Operations until `stop`, added up; any thread may call it. Takes seconds, more than a minute for millions of
        operations."""
        operations = added_up(self._profile.key_averages(group_by_input_shape=True), self._on_gpu)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json.gz"
            self._profile.export_chrome_trace(str(path))
            trace = path.read_bytes()
        return ProcessOperations(self._process, self._seconds, operations, trace)


def added_up(averages: Iterable[Any], on_gpu: bool) -> list[Operation]:
    """Operations by name, and matrix products by the shapes of their operands too, of torch's averages by shapes.

    Args:
        on_gpu: take the seconds of the kernels that an operation started, instead of its own on the CPU.
    """
    totals: dict[tuple[str, str], Operation] = {}
    for each in averages:
        if each.device_type != DeviceType.CPU:  # a kernel, whose time its operation has too
            continue
        microseconds = each.self_device_time_total if on_gpu else each.self_cpu_time_total
        is_product = each.key in PRODUCTS
        key = each.key, _shapes(each.input_shapes) if is_product else ""
        before = totals.get(key, Operation(*key, calls=0, self_s=0.0, flops=0.0))
        totals[key] = before._replace(
            calls=before.calls + each.count,
            self_s=before.self_s + microseconds / 1e6,
            flops=before.flops + (each.flops if is_product else 0.0),
        )
    return list(totals.values())


def _shapes(shapes: Iterable[Iterable[int]]) -> str:
    """Shapes of matrices, as in `512x576, 576x1536`; numbers and vectors are left out."""
    sizes = [list(shape) for shape in shapes]
    return ", ".join("x".join(map(str, size)) for size in sizes if len(size) > 1)
