"""Environment variables that the worker processes without a GPU share."""

from __future__ import annotations

import os

SPINS = "1000"  # thousands of looks take microseconds


def cpu_environment(threads: int) -> dict[str, str]:
    """Variables of a process on CPU with this many torch threads.

    `THP_MEM_ALLOC_ENABLE` makes torch ask for huge pages. A step allocates large tensors anew, and taking them from the
    system in pages of 4 KiB takes longer than writing to them. `GOMP_SPINCOUNT` is how often a thread that waits for
    the others of its process looks for work before it sleeps. By default it looks for milliseconds, on a core that
    another role could use while responses are scored during sampling (docs/tuning.md). A value of the user's
    environment stays.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "THP_MEM_ALLOC_ENABLE": "1",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS),
    }
