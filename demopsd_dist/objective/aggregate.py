"""What a token's loss counts in the batch's: the difference between a mean over tokens and one over responses."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "max_length"]


def token_weight(
    aggregation: Aggregation, length_B: Tensor, *, token_count: float, sequence_count: float, max_tokens: float
) -> Tensor:
    """The weight of each token of B responses, (B,). Those of a whole batch's tokens add up to 1, but for the last.

    Args:
        aggregation: `token_mean` 1 / tokens (DAPO, SDPO); `sequence_mean` 1 / (responses x its length) (GRPO);
            `max_length` 1 / (responses x longest allowed) (Dr. GRPO).
        length_B: response tokens of each.
        token_count: response tokens of the *global* batch.
        sequence_count: responses of the global batch.
        max_tokens: the longest response that sampling allows.
    """
    lengths_B = length_B.clamp(min=1).double()
    if aggregation == "token_mean":
        return lengths_B.new_full(lengths_B.shape, 1.0 / max(token_count, 1.0))
    if aggregation == "sequence_mean":
        return 1.0 / (max(sequence_count, 1.0) * lengths_B)
    if aggregation == "max_length":
        return lengths_B.new_full(lengths_B.shape, 1.0 / (max(sequence_count, 1.0) * max_tokens))
    raise ValueError(f"aggregation={aggregation!r}: give token_mean, sequence_mean or max_length.")
