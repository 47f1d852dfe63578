"""Cut a batch into token-balanced shards, one a rank, each in micro-batches of like-sized samples. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from demopsd_dist.data.records import BatchSize, Scored, TrainBatch

T = TypeVar("T")


def shard(
    items: Sequence[T], length: Callable[[T], int], *, dp_size: int, micro_batch_tokens: int
) -> list[list[list[T]]]:
    """`[rank][micro_batch]` lists of items. Every rank gets the same number of micro-batches, since ranks must meet in
    collectives; short ones are empty.

    The longest item goes to the rank with the fewest tokens so far; then each rank's items, longest first, fill padded
    rectangles of at most `micro_batch_tokens` (one item alone may exceed it). Every item is placed exactly once.
    """
    ranks: list[list[T]] = [[] for _ in range(dp_size)]
    tokens = [0] * dp_size
    for item in sorted(items, key=length, reverse=True):
        lightest = tokens.index(min(tokens))
        ranks[lightest].append(item)
        tokens[lightest] += length(item)
    cut = [rectangles(rank, length, micro_batch_tokens) for rank in ranks]
    most = max((len(batches) for batches in cut), default=0)
    return [batches + [[] for _ in range(most - len(batches))] for batches in cut]


def rectangles(items: Sequence[T], length: Callable[[T], int], tokens: int) -> list[list[T]]:
    """Items, longest first, in batches whose padded size (count times longest) stays within `tokens`."""
    batches: list[list[T]] = []
    for item in sorted(items, key=length, reverse=True):
        if batches and (len(batches[-1]) + 1) * length(batches[-1][0]) <= tokens:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def pack(scored: Sequence[Scored], size: BatchSize, dp_size: int, micro_batch_tokens: int) -> TrainBatch:
    """The training batch of one step, with the counts that make every shard's loss a part of one global mean."""
    shards = shard(
        scored, lambda item: item.student_length_tokens, dp_size=dp_size, micro_batch_tokens=micro_batch_tokens
    )
    return TrainBatch(
        shards=tuple(tuple(tuple(batch) for batch in rank) for rank in shards),
        token_count=sum(item.lesson.response_length_tokens for item in scored),
        size=size,
    )
