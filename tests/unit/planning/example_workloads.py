"""Small workload for tests of the planner, and hardware whose arithmetic can be done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from demopsd_dist.config import load
from demopsd_dist.planning.hardware import Device, DeviceCluster
from demopsd_dist.planning.model_shape import ModelShape
from demopsd_dist.planning.workload import Traffic, Workload, workload_of

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SHAPE = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=192, vocabulary=500, tied=False)
ALIKE = Traffic(prompt_tokens=100, response_tokens=40, response_spread=0.0, solution_tokens=50, right_fraction=0.5)
ENDLESS = 1e9  # GB/s: only computation takes time


def example_workload(*words: str, traffic: Traffic = ALIKE, shape: ModelShape = SHAPE, **changes: Any) -> Workload:
    return replace(workload_of(load(DEMO, list(words)), shape, traffic), **changes)


def gpu(
    memory_gib: float = 80.0, tflops: float = 1.0, memory_gb_per_s: float = ENDLESS, link: float = ENDLESS
) -> Device:
    return Device("gpu", memory_gib, tflops, tflops, tflops, memory_gb_per_s, link, ENDLESS, ENDLESS)


def gpu_cluster(size: int = 8, **device: float) -> DeviceCluster:
    return DeviceCluster(gpu(**device), 1, size)
