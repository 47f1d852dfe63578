"""The order in which questions are asked."""

from __future__ import annotations

import random


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits `count` questions: a permutation that only seed and epoch decide."""
    indices = list(range(count))
    random.Random(f"order/{seed}/{epoch}").shuffle(indices)
    return indices
