"""Order of the training questions in an epoch."""

from __future__ import annotations

import random


def question_order(count: int, seed: int, epoch: int) -> list[int]:
    """Indices of `count` questions in the order of an epoch: a permutation that depends on seed and epoch alone."""
    indices = list(range(count))
    random.Random(f"order/{seed}/{epoch}").shuffle(indices)
    return indices
