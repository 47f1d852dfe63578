"""Architecture of a tiny model: two layers and hidden states of 128, and the settings that several rows share.

The settings of a row make what sets the architecture apart visible at this size: windows shorter than the prompts, soft
caps and scales far from 1, several experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCABULARY = 288  # embedding rows; MiniSci's tokenizer has 267 ids, so that some have no text
CONTEXT = 512
IDS = {"bos_token_id": None, "eos_token_id": 257, "pad_token_id": 256}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": CONTEXT,
    **IDS,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 32}


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix.

    Attributes:
        name: short name of the row.
        config_class: transformers' configuration class.
        settings: arguments of that class.
        words: settings of the run that the row adds, as on the command line.

    Example: `Architecture("llama", "LlamaConfig", {...})`
    """

    name: str
    config_class: str
    settings: Mapping[str, Any]
    words: tuple[str, ...] = ()
