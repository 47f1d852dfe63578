"""The profiler of an actor counts what torch runs: calls, floating-point operations, and the backward pass."""

from __future__ import annotations

import gzip
import json

import torch

from demopsd_dist.run_record.profiling.operations import Operation, ProcessOperations
from workers.cluster.operation_profiler import OperationProfiler
from workers.cluster.spans import Traced

N, D, M = 64, 32, 16


def recorded(worker: Traced) -> ProcessOperations:
    operations = worker.operations()
    assert operations is not None
    return operations


def ended(profiler: OperationProfiler) -> ProcessOperations:
    profiler.stop()
    return profiler.result()


def products(recording: ProcessOperations) -> dict[str, Operation]:
    return {one.shapes: one for one in recording.operations if one.name == "aten::mm"}


def test_products_are_counted_by_shape_forward_and_backward() -> None:
    x, w = torch.randn(N, D), torch.randn(D, M, requires_grad=True)
    profiler = OperationProfiler("learner 0")
    for _ in range(3):
        (x @ w).sum().backward()
    recording = ended(profiler)
    by_shape = products(recording)
    assert set(by_shape) == {f"{N}x{D}, {D}x{M}", f"{D}x{N}, {N}x{M}"}  # the forward, and the gradient of w
    for one in by_shape.values():
        assert (one.calls, one.flops) == (3, 3 * 2 * N * D * M)
        assert 0 < one.self_s < recording.seconds
    assert sum(one.self_s for one in recording.operations) <= recording.seconds
    assert recording.process == "learner 0"


def test_other_operations_are_added_up_over_their_shapes() -> None:
    profiler = OperationProfiler("teacher 0")
    for size in (3, 5, 7):
        torch.exp(torch.zeros(size))
    (exp,) = [one for one in ended(profiler).operations if one.name == "aten::exp"]
    assert (exp.shapes, exp.calls, exp.flops) == ("", 3, 0.0)


def test_the_trace_has_every_call() -> None:
    profiler = OperationProfiler("learner 0")
    for _ in range(4):
        torch.exp(torch.zeros(2))
    trace = json.loads(gzip.decompress(ended(profiler).trace))
    assert sum(event.get("name") == "aten::exp" for event in trace["traceEvents"]) == 4


def test_a_worker_records_from_start_to_end_and_no_longer() -> None:
    worker = Traced()
    assert worker.operations() is None
    worker.start_operations("rollout 0")
    torch.exp(torch.zeros(2))
    assert "aten::exp" in {one.name for one in recorded(worker).operations}
    torch.cos(torch.zeros(2))
    assert worker.operations() is None
    worker.start_operations("rollout 0")
    assert "aten::cos" not in {one.name for one in recorded(worker).operations}


def test_a_recording_that_nobody_fetched_is_replaced() -> None:
    worker = Traced()
    worker.start_operations("learner 0")
    torch.exp(torch.zeros(2))
    worker.start_operations("learner 0")
    torch.cos(torch.zeros(2))
    names = {one.name for one in recorded(worker).operations}
    assert "aten::cos" in names
    assert "aten::exp" not in names


def test_a_recording_that_is_dropped_is_gone() -> None:
    worker = Traced()
    worker.stop_operations()
    worker.start_operations("rollout 0")
    worker.stop_operations()
    assert worker.operations() is None


def test_a_sum_of_products_is_a_product() -> None:
    profiler = OperationProfiler("learner 0")
    total = torch.zeros(N, M)
    torch.addmm(total, torch.randn(N, D), torch.randn(D, M), out=total)
    (one,) = [one for one in ended(profiler).operations if one.name == "aten::addmm"]
    assert (one.shapes, one.flops) == (f"{N}x{M}, {N}x{D}, {D}x{M}, {N}x{M}", 2 * N * D * M)
