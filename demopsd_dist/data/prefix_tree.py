"""Prefix trees: sequences that begin with the same tokens are merged, so that a shared prefix is computed once. Pure.

The responses to one question share its prompt, and in a prefix tree each shared token is a single node. A forward over
the nodes, in which a node sees its ancestors alone, gives every sequence the hidden states it has by itself, and its
backward adds up their gradients: exact, not an approximation. Legend: L nodes, T response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.data.records import Tokens


@dataclass(frozen=True)
class PrefixTree:
    """Nodes of merged sequences; `paths[i]` are the nodes of sequence i, from its first token to its last."""

    tokens_L: NDArray[np.int64]
    depth_L: NDArray[np.int64]  # a node's position in its sequences
    paths: tuple[NDArray[np.int64], ...]
    visible_LL: NDArray[np.bool_] | None  # [i, j]: i sees j; None for a chain, where the mask is causal


def build_prefix_tree(sequences: Sequence[Tokens]) -> PrefixTree:
    """Merge sequences into a prefix tree; one sequence alone gives a chain."""
    paths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(sequences)
    tokens: list[Tokens] = []
    depths: list[NDArray[np.int64]] = []
    nodes = 0
    path = np.zeros(0, np.int64)  # nodes of the previous sequence
    for index, shared in _sorted_with_shared(sequences):
        new_tokens = sequences[index][shared:]
        path = np.concatenate([path[:shared], np.arange(nodes, nodes + len(new_tokens))])
        paths[index] = path
        tokens.append(new_tokens)
        depths.append(np.arange(shared, shared + len(new_tokens)))
        nodes += len(new_tokens)
    visible_LL = None
    if any(len(path) < nodes for path in paths):
        visible_LL = np.zeros((nodes, nodes), np.bool_)
        for path in paths:
            visible_LL[np.ix_(path, path)] = np.tri(len(path), dtype=np.bool_)
    return PrefixTree(np.concatenate(tokens).astype(np.int64), np.concatenate(depths), tuple(paths), visible_LL)


def new_nodes(sequences: Sequence[Tokens]) -> Iterator[tuple[int, int]]:
    """Pairs (index of a sequence, number of nodes that it adds), in the order of `build_prefix_tree`."""
    return ((index, len(sequences[index]) - shared) for index, shared in _sorted_with_shared(sequences))


def _sorted_with_shared(sequences: Sequence[Tokens]) -> Iterator[tuple[int, int]]:
    """Pairs (index, length of the prefix shared with the sequence before), sorted by tokens.

    In this order a sequence shares its longest prefix with the sequence directly before it.
    """
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    before: Tokens | None = None
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        sequence = sequences[index]
        yield index, 0 if before is None else _common_prefix(before, sequence)
        before = sequence


def _common_prefix(first: Tokens, second: Tokens) -> int:
    common = min(len(first), len(second))
    differing = np.flatnonzero(first[:common] != second[:common])
    return int(differing[0]) if len(differing) else common
