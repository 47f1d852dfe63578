"""Forward pass of teacher and learners: padded batches, siblings in one row, hidden states of responses only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from demopsd_dist.config import Config, Precision
from demopsd_dist.data.prefix_tree import PrefixTree, build_prefix_tree
from demopsd_dist.data.records import Tokens, forward_input
from demopsd_dist.models.text_config import has_capped_attention, logit_scale_and_cap, text_config_of
from demopsd_dist.models.whole_model import refuse_other_tensors
from demopsd_dist.objective import LogitTransform, OutputHead, row_slices
from workers.weights.tensor_groups import full_shape

HEAD_CHUNK_TOKENS = 2048  # response tokens whose logits exist at one time
EAGER = "eager"  # transformers' attention without a fused kernel
_ONE_TOKEN = np.zeros(1, dtype=np.int32)  # of a dummy forward


def load_causal_lm(folder: Path, precision: Precision | None) -> Any:
    """Load a transformers causal language model; no code from the folder is run.

    Without a precision it has that of its files, and is memory-mapped: weights that are never read take no memory.
    Attention is transformers' choice for the model, but eager where scores have a soft cap: its fused attention leaves
    the cap out.

    Raises:
        ConfigError: a tensor of the model is not in the folder, or one of the folder not in the model.
    """
    from transformers import AutoModelForCausalLM

    attention = {"attn_implementation": EAGER} if has_capped_attention(text_config_of(folder)) else {}
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, precision.value) if precision else "auto",
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the answer, and refused
        **attention,
    )
    refuse_other_tensors(folder, model, loaded)
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Layers of a transformers model, outer ones first; empty if transformers does not know them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def release_gpu_cache(config: Config, device: torch.device) -> None:
    """Free torch's cached GPU memory, if rollout engines share the GPU and need it when they wake up."""
    if config.rollout.sleep and device.type == "cuda":
        torch.cuda.empty_cache()


class PaddedBatch:
    """Rows of prompts with responses, padded on the right, and the positions that predict the response tokens.

    A row with several responses is a prefix tree (`demopsd_dist/data/prefix_tree.py`) and needs a mask. If every row
    has one response, attention is causal and the padding comes last: no real token ever attends to a padded one, and no
    mask is needed. Without rows the batch has one dummy token, so that a rank without work can join a collective.
    `N` below counts the response tokens of all samples, sample after sample, row after row.
    """

    def __init__(self, rows: Sequence[Sequence[tuple[Tokens, Tokens]]], device: torch.device) -> None:
        rows = rows or [[(_ONE_TOKEN, _ONE_TOKEN)]]
        trees = [build_prefix_tree([forward_input(*sample) for sample in row]) for row in rows]
        tokens_BL = _padded([tree.tokens_L for tree in trees])
        self.lengths = [len(response) for row in rows for _, response in row]
        positions = [
            path[len(prompt) - 1 :]
            for row, tree in zip(rows, trees, strict=True)
            for (prompt, _), path in zip(row, tree.paths, strict=True)
        ]
        row_B = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        responses = [response for row in rows for _, response in row]
        self.tokens_BL = torch.from_numpy(tokens_BL).to(device)
        self.row_N = torch.from_numpy(np.repeat(row_B, self.lengths)).to(device)
        self.position_N = torch.from_numpy(np.concatenate(positions)).to(device)
        self.response_N = torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(device)
        self.position_ids_BL: Tensor | None = None
        self.mask_B1LL: Tensor | None = None
        if any(tree.visible_LL is not None for tree in trees):
            self.position_ids_BL = torch.from_numpy(_padded([tree.depth_L for tree in trees])).to(device)
            self.mask_B1LL = torch.from_numpy(_attention_mask(trees, tokens_BL.shape[1])).to(device)

    def split(self, values_N: Tensor) -> list[Any]:
        """Split values of response tokens, (N, ...), into one array a sample."""
        return [piece.numpy() for piece in values_N.cpu().split(self.lengths)]


def _padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows as one array, filled up with zeros on the right."""
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _attention_mask(trees: Sequence[PrefixTree], length: int) -> NDArray[np.bool_]:
    """Attention mask (B, 1, L, L): [i, j] is True if token i attends to j. Padding attends to all tokens before it, so
    that its softmax is a number."""
    mask_B1LL = np.tile(np.tri(length, dtype=np.bool_), (len(trees), 1, 1, 1))
    for row, tree in zip(mask_B1LL[:, 0], trees, strict=True):
        if tree.visible_LL is not None:
            nodes = len(tree.tokens_L)
            row[:nodes, :nodes] = tree.visible_LL
    return mask_B1LL


HeadFunction = Callable[[OutputHead, Tensor], Any]  # of the head and hidden states (N, H); returns tensors


class ResponseModel(nn.Module):
    """Causal LM whose forward calls a function of the caller's choice on the model's head and the hidden states that
    predict response tokens: `OutputHead.logits` for all logits (N, V)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._transform = LogitTransform(*logit_scale_and_cap(model.config.get_text_config()))

    def forward(self, batch: PaddedBatch, function: HeadFunction) -> Any:
        """Run the decoder, then the function on the head and the hidden states of the response positions."""
        decoder = decoder_of(self.model)
        tree: dict[str, Tensor] = {}  # not every model takes a mask and positions
        if batch.mask_B1LL is not None and batch.position_ids_BL is not None:
            mask_B1LL = _additive(batch.mask_B1LL, decoder) if _is_eager(decoder) else batch.mask_B1LL
            tree = {"attention_mask": mask_B1LL, "position_ids": batch.position_ids_BL}
        hidden_BLH = decoder(input_ids=batch.tokens_BL, use_cache=False, **tree).last_hidden_state
        return function(self._head(), hidden_BLH[batch.row_N, batch.position_N])

    def _head(self) -> OutputHead:
        """Head as a record. Under ZeRO-3 touching the weight gathers it, a collective: once a forward, however many
        slices a rank has."""
        layer = self.model.get_output_embeddings()
        return OutputHead(layer.weight, getattr(layer, "bias", None), self._transform)


def decoder_of(model: Any) -> Any:
    """Decoder of a causal language model: all but its head. For some models transformers returns the whole model."""
    decoder = model.get_decoder()
    return model.model if decoder is model else decoder


def _is_eager(decoder: Any) -> bool:
    """Whether the attention is not a fused one: it adds the mask to the scores."""
    return decoder.config._attn_implementation == EAGER


def _additive(mask_B1LL: Tensor, decoder: nn.Module) -> Tensor:
    """Mask to add to attention scores: zero where a token is seen."""
    dtype = next(parameter.dtype for parameter in decoder.parameters() if parameter.is_floating_point())
    return torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill_(~mask_B1LL, torch.finfo(dtype).min)


def in_slices(reduce: Callable[[Tensor, slice], Tensor]) -> HeadFunction:
    """Build a function that calls `reduce(logits, tokens)` for one slice of tokens after another, and joins the
    results."""

    def function(head: OutputHead, hidden_NH: Tensor) -> Tensor:
        slices = row_slices(len(hidden_NH), HEAD_CHUNK_TOKENS)
        return torch.cat([reduce(head.logits(hidden_NH[tokens]), tokens) for tokens in slices])

    return function


def vocabulary_rows(model: Any) -> int:
    """Number of token ids that the model's head has logits for: its rows, whole under ZeRO-3 too."""
    return full_shape(model.get_output_embeddings().weight)[0]


def support_tensor(supports_TK: Sequence[Tokens], device: torch.device) -> Tensor | None:
    """Support ids of several samples as one (N, K) tensor; None if they have no columns, i.e. the full vocabulary."""
    ids_NK = torch.from_numpy(np.concatenate(list(supports_TK)).astype(np.int64)).to(device)
    return ids_NK if ids_NK.shape[-1] else None


def sampled_first(ids_TK: Tokens, response_T: Tokens) -> Tokens:
    """Support ids (T, K) with the sampled token of each position at index 0; it takes the place of the last id where it
    was not among them."""
    is_sampled_TK = ids_TK == response_T[:, None]
    replaced_T = np.where(is_sampled_TK.any(1), is_sampled_TK.argmax(1), ids_TK.shape[1] - 1)
    kept_TK = np.arange(ids_TK.shape[1]) != replaced_T[:, None]
    others_TK = ids_TK[kept_TK].reshape(len(ids_TK), -1)
    return np.concatenate([response_T[:, None], others_TK], axis=1).astype(np.int32)
