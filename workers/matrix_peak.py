"""Peak rate of matrix products on a device, measured: the best of a few products of square matrices."""

from __future__ import annotations

import time

import torch

from demopsd_dist.config import Precision

SIZES = {"cpu": 768, "cuda": 4096}
ROUNDS = 4


def matrix_peak_flops(device: torch.device, precision: Precision) -> float:
    """Operations/s of the fastest of several products in this precision, with the threads of this process. The random
    generators are left as they are."""
    size = SIZES[device.type]
    one = torch.ones(size, size, dtype=getattr(torch, precision.value), device=device)
    best_s = float("inf")
    for _ in range(ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.nn.functional.linear(one, one)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started)
    return 2.0 * size**3 / best_s
