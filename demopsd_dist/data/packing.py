"""Rows, shards and micro-batches: a batch is cut into token-balanced shards, one a rank. Pure.

A row is one line of a forward's input: a response with its prompt, or several responses to one question, merged by
their common prefix (`prefix_tree.py`). `layout_by_question` is the one layout of the student's view: the support, the
assignment of examples to the teacher's workers, and the training batch all cut their rows by it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from demopsd_dist.data.prefix_tree import new_nodes
from demopsd_dist.data.records import BatchSize, ScoredExample, Tokens, TrainBatch, TrainingExample

T = TypeVar("T")


@dataclass(frozen=True)
class Row(Generic[T]):
    """Items that share one line of a forward's input."""

    items: tuple[T, ...]
    tokens: int  # nodes of the items' prefix tree


@dataclass(frozen=True)
class RowLayout(Generic[T]):
    """Rule that groups items into rows.

    A row's attention looks at all pairs of its tokens, so its length is bounded: beyond some length the attention
    costs more than the shared prefix saves.

    Attributes:
        group_of: key of an item; only items with the same key may share a row.
        sequence_of: tokens of an item in its row.
        tree_tokens: longest shared row; 0 gives each item a row of its own.
    """

    group_of: Callable[[T], Hashable]
    sequence_of: Callable[[T], Tokens]
    tree_tokens: int

    def rows(self, items: Iterable[T], max_tokens: int | None = None) -> list[Row[T]]:
        """Rows of at most `tree_tokens` (and `max_tokens`) with items of one group; a longer item has its own row."""
        bound = self.tree_tokens if max_tokens is None else min(self.tree_tokens, max_tokens)
        groups: dict[Hashable, list[T]] = {}
        for item in items:
            groups.setdefault(self.group_of(item), []).append(item)
        return [row for group in groups.values() for row in self._cut(group, bound)]

    def _cut(self, group: list[T], bound: int) -> list[Row[T]]:
        sequences = [self.sequence_of(item) for item in group]
        rows: list[Row[T]] = []
        for index, added in new_nodes(sequences):
            if rows and rows[-1].tokens + added <= bound:
                rows[-1] = Row((*rows[-1].items, group[index]), rows[-1].tokens + added)
            else:
                rows.append(Row((group[index],), len(sequences[index])))
        return rows


def layout_by_question(example_of: Callable[[T], TrainingExample], tree_tokens: int) -> RowLayout[T]:
    """Layout of the student's view: examples of one question may share a row of prompt and response.

    Args:
        example_of: the example of an item; items may be examples, scored examples or indices.
    """
    return RowLayout(lambda item: example_of(item).prompt.id, lambda item: example_of(item).student_input, tree_tokens)


def assign_rows(items: Sequence[T], layout: RowLayout[T], dp_size: int) -> list[list[Row[T]]]:
    """Rows by rank: the longest goes to the rank with the fewest tokens so far. Every item is assigned exactly once."""
    rows = layout.rows(items)
    max_tokens = sum(row.tokens for row in rows) // (2 * dp_size)
    if dp_size > 1 and any(row.tokens > max_tokens for row in rows):
        rows = layout.rows(items, max_tokens)  # shorter ones balance better, and repeat prompts
    ranks: list[list[Row[T]]] = [[] for _ in range(dp_size)]
    tokens = [0] * dp_size
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        lightest = tokens.index(min(tokens))
        ranks[lightest].append(row)
        tokens[lightest] += row.tokens
    return ranks


def shard_rows(
    items: Sequence[T], layout: RowLayout[T], *, dp_size: int, micro_batch_tokens: int
) -> list[list[list[Row[T]]]]:
    """Rows by rank and micro-batch: `[rank][micro_batch]` is a list of rows.

    Every rank gets the same number of micro-batches, since ranks must meet in collectives; ranks with fewer rows get
    empty ones. Each rank's rows, longest first, fill micro-batches of a padded size of at most `micro_batch_tokens`
    (one row alone may exceed it).
    """
    shards = [padded_batches(rank, micro_batch_tokens) for rank in assign_rows(items, layout, dp_size)]
    count = max((len(batches) for batches in shards), default=0)
    return [batches + [[] for _ in range(count - len(batches))] for batches in shards]


def padded_batches(rows: Iterable[Row[T]], max_tokens: int) -> list[list[Row[T]]]:
    """Rows, longest first, in batches whose padded size (count times longest) stays within `max_tokens`."""
    batches: list[list[Row[T]]] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].tokens <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pack(
    scored: Sequence[ScoredExample],
    size: BatchSize,
    dp_size: int,
    micro_batch_tokens: int,
    tree_tokens: int,
    record_ids: Iterable[str] = (),
) -> TrainBatch:
    """Training batch of one step, with the counts that make every shard's loss a part of one global mean."""
    layout: RowLayout[ScoredExample] = layout_by_question(lambda item: item.example, tree_tokens)
    shards = shard_rows(scored, layout, dp_size=dp_size, micro_batch_tokens=micro_batch_tokens)
    return TrainBatch(
        shards=tuple(tuple(tuple(row.items for row in batch) for batch in rank) for rank in shards),
        token_count=sum(item.example.response_length_tokens for item in scored),
        size=size,
        record_ids=frozenset(record_ids),
    )
