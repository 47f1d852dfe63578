"""Cut a batch into token-balanced shards, one a rank, each in micro-batches of like-sized rows. Pure.

A row is what one line of a forward's input holds: a response with its prompt, or several responses to one question,
merged by what they share (`tree.py`).
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
    items: tuple[T, ...]
    tokens: int  # nodes of their tree


@dataclass(frozen=True)
class Layout(Generic[T]):
    """How to lay items out: who may share a row, what each brings into it, and how long a row may be.

    A row's attention looks at all pairs of its tokens, so its length is bounded: beyond some length what is shared
    costs more than it saves. `tree_tokens=0` gives each item a row of its own.
    """

    group_of: Callable[[T], Hashable]
    sequence_of: Callable[[T], Tokens]
    tree_tokens: int

    def rows(self, items: Iterable[T], most_tokens: int | None = None) -> list[Row[T]]:
        """Items of one group share a row, as many as fit in `tree_tokens` (and in `most_tokens`); one always fits."""
        bound = self.tree_tokens if most_tokens is None else min(self.tree_tokens, most_tokens)
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


def by_question(example_of: Callable[[T], TrainingExample], tree_tokens: int) -> Layout[T]:
    """The student's view: what belongs to one question may share a row."""
    return Layout(lambda item: example_of(item).prompt.id, lambda item: example_of(item).student_input, tree_tokens)


def deal(items: Sequence[T], layout: Layout[T], dp_size: int) -> list[list[Row[T]]]:
    """Rows by rank: the longest goes to the rank with the fewest tokens so far. Every item is placed exactly once."""
    rows = layout.rows(items)
    most_tokens = sum(row.tokens for row in rows) // (2 * dp_size)
    if any(row.tokens > most_tokens for row in rows):
        rows = layout.rows(items, most_tokens)  # shorter ones balance better
    ranks: list[list[Row[T]]] = [[] for _ in range(dp_size)]
    tokens = [0] * dp_size
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        lightest = tokens.index(min(tokens))
        ranks[lightest].append(row)
        tokens[lightest] += row.tokens
    return ranks


def shard(items: Sequence[T], layout: Layout[T], *, dp_size: int, micro_batch_tokens: int) -> list[list[list[Row[T]]]]:
    """`[rank][micro_batch]` lists of rows. Every rank gets the same number of micro-batches, since ranks must meet in
    collectives; short ones are empty.

    Each rank's rows, longest first, fill padded padded_batches of at most `micro_batch_tokens` (one row alone may exceed
    it).
    """
    cut = [padded_batches(rank, micro_batch_tokens) for rank in deal(items, layout, dp_size)]
    most = max((len(batches) for batches in cut), default=0)
    return [batches + [[] for _ in range(most - len(batches))] for batches in cut]


def padded_batches(rows: Iterable[Row[T]], tokens: int) -> list[list[Row[T]]]:
    """Rows, longest first, in batches whose padded size (count times longest) stays within `tokens`."""
    batches: list[list[Row[T]]] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].tokens <= tokens:
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
    """The training batch of one step, with the counts that make every shard's loss a part of one global mean."""
    layout: Layout[ScoredExample] = by_question(lambda item: item.example, tree_tokens)
    shards = shard(scored, layout, dp_size=dp_size, micro_batch_tokens=micro_batch_tokens)
    return TrainBatch(
        shards=tuple(tuple(tuple(row.items for row in batch) for batch in rank) for rank in shards),
        token_count=sum(item.example.response_length_tokens for item in scored),
        size=size,
        record_ids=frozenset(record_ids),
    )
