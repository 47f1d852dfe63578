"""Weights of tokens in the batch's loss: a mean over tokens, or one over responses."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "max_length"]


def token_weight(
    aggregation: Aggregation, length_B: Tensor, *, token_count: float, sequence_count: float, max_tokens: float
) -> Tensor:
    """Weight of each token of B responses, (B,). Over a whole batch they add up to 1, except with `max_length`.

    Args:
        aggregation: `token_mean` 1 / tokens (DAPO, SDPO); `sequence_mean` 1 / (responses x its length) (GRPO);
            `max_length` 1 / (responses x longest allowed) (Dr. GRPO).
        length_B: response tokens of each response.
        token_count: response tokens of the *global* batch.
        sequence_count: responses of the global batch.
        max_tokens: the longest response that sampling allows.

    Raises:
        ValueError: the aggregation is none of the three.
    """
    lengths_B = length_B.clamp(min=1).double()
    if aggregation == "token_mean":
        return lengths_B.new_full(lengths_B.shape, 1.0 / max(token_count, 1.0))
    if aggregation == "sequence_mean":
        return 1.0 / (max(sequence_count, 1.0) * lengths_B)
    if aggregation == "max_length":
        return lengths_B.new_full(lengths_B.shape, 1.0 / (max(sequence_count, 1.0) * max_tokens))
    raise ValueError(f"aggregation={aggregation!r}: give token_mean, sequence_mean or max_length.")
