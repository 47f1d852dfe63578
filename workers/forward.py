"""The forward pass that teacher and learners share: response positions only, siblings merged, rows in a padded_batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from demopsd_dist.config import Config, Precision
from demopsd_dist.data.prefix_tree import PrefixTree, tree_of
from demopsd_dist.data.records import Tokens, input_of

HEAD_CHUNK_TOKENS = 2048
_NOTHING = np.zeros(1, dtype=np.int32)


def load_causal_lm(folder: Path, precision: Precision | None) -> Any:
    """A transformers causal language model; no code from the folder is run.

    Without a precision it has that of its files, and is mapped from them: what is never touched takes no memory.
    """
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, precision.value) if precision else "auto",
        trust_remote_code=False,
        use_safetensors=True,
    )


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, outer ones first; none where transformers does not tell them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def give_back(config: Config, device: torch.device) -> None:
    """What torch keeps of a GPU for its next tensors, where engines sleep to make room, and want it when they wake."""
    if config.rollout.sleep and device.type == "cuda":
        torch.cuda.empty_cache()


class PaddedBatch:
    """Rows of prompts with responses, padded on the right, and where the response tokens are predicted.

    A row with several responses is a prefix tree (`demopsd_dist/data/prefix_tree.py`) and needs a mask. Where each has one,
    attention is causal and the padding comes last: no real token ever sees a padded one, and no mask is needed.
    Without rows it has one token, which nobody asks for: whose forward is a collective takes part with it.
    `N` below counts the response tokens of all samples, sample after sample, row after row.
    """

    def __init__(self, rows: Sequence[Sequence[tuple[Tokens, Tokens]]], device: torch.device) -> None:
        rows = rows or [[(_NOTHING, _NOTHING)]]
        trees = [tree_of([input_of(*sample) for sample in row]) for row in rows]
        tokens_BL = _padded([tree.tokens_L for tree in trees])
        self.lengths = [len(response) for row in rows for _, response in row]
        places = [
            path[len(prompt) - 1 :]
            for row, tree in zip(rows, trees, strict=True)
            for (prompt, _), path in zip(row, tree.paths, strict=True)
        ]
        row_B = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        responses = [response for row in rows for _, response in row]
        self.tokens_BL = torch.from_numpy(tokens_BL).to(device)
        self.row_N = torch.from_numpy(np.repeat(row_B, self.lengths)).to(device)
        self.place_N = torch.from_numpy(np.concatenate(places)).to(device)
        self.response_N = torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(device)
        self.depth_BL: Tensor | None = None
        self.visible_B1LL: Tensor | None = None
        if any(tree.visible_LL is not None for tree in trees):
            self.depth_BL = torch.from_numpy(_padded([tree.depth_L for tree in trees])).to(device)
            self.visible_B1LL = torch.from_numpy(_visible(trees, tokens_BL.shape[1])).to(device)

    def split(self, values_N: Tensor) -> list[Any]:
        """Per-token values back to one float32 or int32 array a sample."""
        return [piece.numpy() for piece in values_N.cpu().split(self.lengths)]


def _padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _visible(trees: Sequence[PrefixTree], length: int) -> NDArray[np.bool_]:
    """(B, 1, L, L): who sees whom. Padding sees what is before it, so that its softmax is a number."""
    visible_B1LL = np.tile(np.tri(length, dtype=np.bool_), (len(trees), 1, 1, 1))
    for row, tree in zip(visible_B1LL[:, 0], trees, strict=True):
        if tree.visible_LL is not None:
            nodes = len(tree.tokens_L)
            row[:nodes, :nodes] = tree.visible_LL
    return visible_B1LL


Head = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (hidden (N, H), weight (V, H), bias (V,)) -> anything


class ResponseModel(nn.Module):
    """A causal LM that gives a head of the caller's choice the hidden states where a response token is predicted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PaddedBatch, head: Head) -> Tensor:
        decoder = self.model.get_decoder()
        hidden_BLH = decoder(
            input_ids=batch.tokens_BL,
            attention_mask=batch.visible_B1LL,
            position_ids=batch.depth_BL,
            use_cache=False,
        ).last_hidden_state
        layer = self.model.get_output_embeddings()
        # Under ZeRO-3 touching the weight gathers it, a collective: once a forward, however many slices a rank has.
        return head(hidden_BLH[batch.row_N, batch.place_N], layer.weight, getattr(layer, "bias", None))


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
