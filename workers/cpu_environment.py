"""Environment variables that the worker processes without a GPU share."""

from __future__ import annotations


def cpu_environment(threads: int) -> dict[str, str]:
    """Variables of a process on CPU with this many torch threads.

    `THP_MEM_ALLOC_ENABLE` makes torch ask for huge pages. A step allocates large tensors anew, and taking them from the
    system in pages of 4 KiB takes longer than writing to them.
    """
    return {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "THP_MEM_ALLOC_ENABLE": "1"}
