"""The forward pass that teacher and learners share: response positions only, several samples in a padded rectangle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from demopsd_dist.config import Precision
from demopsd_dist.data.records import Tokens

HEAD_CHUNK_TOKENS = 2048


def load_causal_lm(folder: Path, precision: Precision) -> Any:
    """A transformers causal language model; no code from the folder is run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, precision.value), trust_remote_code=False, use_safetensors=True
    )


class Rectangle:
    """Prompts with their responses, padded on the right, and where the response tokens are predicted.

    Attention is causal and the padding comes last, so no real token ever sees a padded one and no mask is needed.
    `N` below counts the response tokens of all samples, sample after sample.
    """

    def __init__(self, samples: Sequence[tuple[Tokens, Tokens]], device: torch.device) -> None:
        rows = [np.concatenate([prompt, response]) for prompt, response in samples]
        tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for row, values in zip(tokens, rows, strict=True):
            row[: len(values)] = values
        self.lengths = [len(response) for _, response in samples]
        row_N = np.repeat(np.arange(len(rows)), self.lengths)
        position_N = np.concatenate([np.arange(len(p) - 1, len(p) + len(r) - 1) for p, r in samples])
        self.tokens_BL = torch.from_numpy(tokens).to(device)
        self.row_N = torch.from_numpy(row_N).to(device)
        self.position_N = torch.from_numpy(position_N).to(device)
        self.response_N = torch.from_numpy(np.concatenate([r for _, r in samples]).astype(np.int64)).to(device)

    def split(self, values_N: Tensor) -> list[Any]:
        """Per-token values back to one float32 or int32 array a sample."""
        return [piece.numpy() for piece in values_N.cpu().split(self.lengths)]


Head = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (hidden (N, H), weight (V, H), bias (V,)) -> anything


class ResponseModel(nn.Module):
    """A causal LM that gives a head of the caller's choice the hidden states where a response token is predicted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Rectangle, head: Head) -> Tensor:
        hidden_BLH = self.model.get_decoder()(input_ids=batch.tokens_BL, use_cache=False).last_hidden_state
        layer = self.model.get_output_embeddings()
        # Under ZeRO-3 touching the weight gathers it, a collective: once a forward, however many slices a rank has.
        return head(hidden_BLH[batch.row_N, batch.position_N], layer.weight, getattr(layer, "bias", None))


def in_slices(reduce: Callable[[Tensor, slice], Tensor]) -> Head:
    """A head that gives what `reduce(logits, tokens)` makes of a slice of the logits at a time, one after the other."""

    def head(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        slices = [slice(i, i + HEAD_CHUNK_TOKENS) for i in range(0, len(hidden_NH), HEAD_CHUNK_TOKENS)]
        return torch.cat([reduce(linear(hidden_NH[tokens], weight_VH, bias_V), tokens) for tokens in slices])

    return head


def support_tensor(supports_TK: Sequence[Tokens], device: torch.device) -> Tensor | None:
    """Several samples' support ids as one (N, K) tensor; None where they have no columns: the full vocabulary."""
    ids_NK = torch.from_numpy(np.concatenate(list(supports_TK)).astype(np.int64)).to(device)
    return ids_NK if ids_NK.shape[-1] else None
