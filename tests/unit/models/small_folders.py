"""Folders of small random models: one layer, MiniSci's tokenizer and context."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    GPT2Config,
    Mamba2Config,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from demopsd_dist.minisci import MODEL_DIR

COMMON: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 256,
    "initializer_range": 0.1,
}
GROUPED = COMMON | {"num_key_value_heads": 1, "head_dim": 32}
EXPERTS = GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen3": lambda **changes: Qwen3Config(**GROUPED | changes),
    "qwen3_moe": lambda **changes: Qwen3MoeConfig(**EXPERTS | {"num_experts": 4} | changes),
    "mixtral": lambda **changes: MixtralConfig(**EXPERTS | {"num_local_experts": 4, "sliding_window": None} | changes),
    "glm4_moe": lambda **changes: Glm4MoeConfig(
        **EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0} | changes
    ),
    "deepseek_v3": lambda **changes: DeepseekV3Config(
        **EXPERTS
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 48}
        | {"num_key_value_heads": 2, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32}
        | {"v_head_dim": 32}
        | changes
    ),
    "mamba2": lambda **changes: Mamba2Config(
        vocab_size=272,
        hidden_size=64,
        num_hidden_layers=1,
        num_heads=4,
        head_dim=32,
        state_size=16,
        n_groups=1,
        **changes,
    ),
    "gpt2": lambda **changes: GPT2Config(vocab_size=272, n_embd=64, n_layer=1, n_head=2, n_positions=512, **changes),
}


def small_folder(folder: Path, kind: str, **changes: Any) -> Any:
    """Write a model of one of `CONFIGS`, with these settings changed, as a folder; the model.

    Persistent buffers are random, so that one that is lost shows.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**changes))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        if name not in parameters:
            tensor.copy_(torch.rand_like(tensor))
    shutil.copytree(
        MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True
    )
    model.save_pretrained(folder)
    return model.eval()


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a folder's only file of weights."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
