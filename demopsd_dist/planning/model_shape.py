"""Shape of a model from its `config.json`: parameters, and bytes and operations a token. Weights are not needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demopsd_dist.config import MINISCI
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.model_folder import tensor_parallel_sizes
from demopsd_dist.models.text_config import language_settings
from demopsd_dist.util.errors import ConfigError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SOFTMAX_FLOPS = 64  # of a matrix product, in the time that one head masks, scales and exponentiates one pair


@dataclass(frozen=True)
class ModelShape:
    """A decoder with grouped-query attention and a gated feed-forward block, dense or of experts."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of one expert, in a model of experts
    vocabulary: int
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0
    bias: bool = False  # of the projections to queries, keys and values
    normed_heads: bool = True  # queries and keys, as Qwen3 does

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def attention(self) -> int:
        """Parameters of a layer's attention projections."""
        bias = self.query + 2 * self.key if self.bias else 0
        return self.hidden * (2 * self.query + 2 * self.key) + bias

    @property
    def tensor_parallel_sizes(self) -> list[int]:
        """Numbers of processes that one engine may have."""
        return tensor_parallel_sizes(self.heads, self.kv_heads)

    @property
    def head(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        block = 3 * self.hidden * self.intermediate
        if self.experts:
            block = block * self.experts + self.hidden * self.experts
        norms = 2 * self.hidden + (2 * self.head_dim if self.normed_heads else 0)
        return self.layers * (self.attention + block + norms) + self.hidden + self.head * (1 if self.tied else 2)

    def adapters(self, rank: int, targets: Sequence[str] = ()) -> int:
        """LoRA parameters on the named projections; without names, on all projections except the experts'."""
        query, key = self.hidden + self.query, self.hidden + self.key
        block = 0 if self.experts else self.hidden + self.intermediate
        sides = dict(zip(PROJECTIONS, (query, key, key, query, block, block, block), strict=True))
        return self.layers * rank * sum(sides[name] for name in PROJECTIONS if not targets or name in targets)

    @property
    def active(self) -> int:
        """Parameters of all layers that one token is multiplied with, without embedding and head."""
        block = 3 * self.hidden * self.intermediate
        if self.experts:
            block = block * self.experts_per_token + self.hidden * self.experts
        return self.layers * (self.attention + block)

    @property
    def stored(self) -> int:
        """Parameters of all layers."""
        return self.parameters - self.head * (1 if self.tied else 2)

    @property
    def pair_flops(self) -> int:
        """Operations in all layers for one pair of tokens: two products, and the softmax of each head."""
        return self.layers * (4 * self.query + SOFTMAX_FLOPS * self.heads)

    def kv_bytes(self, element_bytes: int) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.key * element_bytes

    def saved_elements(self) -> int:
        """Elements that autograd saves of a token in one layer: both norms (input, scaled, result), queries and keys
        before, inside and after their norms, keys and values repeated for every head, the attention's result, and
        four tensors of the feed-forward block."""
        width = self.intermediate * max(self.experts_per_token, 1)
        norms = 3 * (self.query + self.key) if self.normed_heads else self.query + self.key
        return 6 * self.hidden + norms + 3 * self.query + self.key + 4 * width


QWEN3: dict[str, tuple[int, int, int, int, int, bool]] = {  # layers, hidden, heads, kv heads, intermediate, tied
    "qwen3-0.6b": (28, 1024, 16, 8, 3072, True),
    "qwen3-1.7b": (28, 2048, 16, 8, 6144, True),
    "qwen3-4b": (36, 2560, 32, 8, 9728, True),
    "qwen3-8b": (36, 4096, 32, 8, 12288, False),
    "qwen3-14b": (40, 5120, 40, 8, 17408, False),
    "qwen3-32b": (64, 5120, 64, 8, 25600, False),
}
KNOWN = {
    name: ModelShape(layers, hidden, heads, kv_heads, 128, intermediate, 151_936, tied)
    for name, (layers, hidden, heads, kv_heads, intermediate, tied) in QWEN3.items()
} | {
    "qwen3-30b-a3b": ModelShape(48, 2048, 32, 4, 128, 768, 151_936, experts=128, experts_per_token=8),
    "llama-3.1-8b": ModelShape(32, 4096, 32, 8, 128, 14_336, 128_256, normed_heads=False),
}
"""Shapes of models that need not be downloaded, from their published `config.json`."""


def shape_of(path: str) -> ModelShape:
    """Shape of `model.path`: from the folder's `config.json`, or of a known model that the path names.

    Raises:
        ConfigError: there is no such folder and the name is not known, or its `config.json` lacks something.
    """
    folder = MODEL_DIR if path == MINISCI else Path(path)
    if (folder / "config.json").is_file():
        return shape_from(json.loads((folder / "config.json").read_text(encoding="utf-8")), str(folder))
    name = Path(path).name.lower()
    for prefix in sorted(KNOWN, key=len, reverse=True):
        if name.startswith(prefix):
            return KNOWN[prefix]
    raise ConfigError(
        f"model.path={path}: no config.json in it, and not a model whose shape is known: {', '.join(KNOWN)}."
    )


def shape_from(settings: dict[str, Any], where: str) -> ModelShape:
    """Shape from the settings of a `config.json`.

    Raises:
        ConfigError: a key is missing; `where` names the folder in the message.
    """
    settings = language_settings(settings)
    experts = int(settings.get("num_experts") or settings.get("num_local_experts") or 0)
    try:
        heads, hidden = settings["num_attention_heads"], settings["hidden_size"]
        return ModelShape(
            layers=settings["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=settings.get("num_key_value_heads") or heads,
            head_dim=settings.get("head_dim") or hidden // heads,
            intermediate=settings["moe_intermediate_size"] if experts else settings["intermediate_size"],
            vocabulary=settings["vocab_size"],
            tied=bool(settings.get("tie_word_embeddings", False)),
            experts=experts,
            experts_per_token=int(settings.get("num_experts_per_tok") or 0) if experts else 0,
            bias=bool(settings.get("attention_bias")) or settings.get("model_type") == "qwen2",
            normed_heads=str(settings.get("model_type", "")).startswith("qwen3"),
        )
    except KeyError as error:
        raise ConfigError(f"{where}: config.json has no {error.args[0]}; the model's shape cannot be read.") from None
