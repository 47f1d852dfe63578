"""Main memory for buckets that arrive by a broadcast.

Fresh memory costs as much time as the transfer itself, since the system clears each page at its first use. So memory is
used again, but only once nothing refers to the bucket that lay there: an engine keeps tensors of a bucket until the
layer that they belong to is complete, which may be a bucket later.
"""

from __future__ import annotations

import sys

import numpy as np

from workers.weights.buckets import Bytes

FREE = 2  # references to an array that only the list here, and the count itself, refer to


class ArrivalMemory:
    """Arrays that are lent to arriving buckets. Each bucket, and each tensor that is cut out of it, refers to its whole
    array for as long as it lives."""

    def __init__(self) -> None:
        self._arrays: list[Bytes] = []

    def take(self, size: int) -> Bytes:
        """Memory of this size in bytes that nobody uses."""
        for index in range(len(self._arrays)):
            if sys.getrefcount(self._arrays[index]) == FREE and len(self._arrays[index]) >= size:
                return self._arrays[index][:size]
        self._arrays.append(np.empty(size, np.uint8))
        return self._arrays[-1][:size]
