"""Models with random weights, by size, for measurements of time and memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from demopsd_dist.minisci import MODEL_DIR


def sizes(layers: int, hidden: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, int]:
    """Settings of a Qwen3 of this size."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
    }


MODELS = {
    "3M": sizes(6, 192, 6, 2, 1024),
    "10M": sizes(8, 256, 8, 4, 4096),
    "30M": sizes(8, 512, 8, 4, 8192),
    "60M": sizes(10, 640, 10, 5, 16384),
    "100M": sizes(8, 768, 12, 4, 32768),
    "250M": sizes(12, 1152, 18, 6, 32768),
    "360M": sizes(26, 1024, 16, 8, 16384),  # number of layers, and their share beside the head, of models of billions
    "500M": sizes(13, 1536, 24, 8, 49152),
}


@contextmanager
def model_folder(name: str, precision: str = "float32") -> Iterator[Path]:
    """Temporary folder of a Qwen3 of that size. Every id of its vocabulary has a text that is read back as that id."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    settings = json.loads((MODEL_DIR / "config.json").read_text())
    for key in ("layer_types", "dtype", "max_window_layers"):
        settings.pop(key, None)
    model = Qwen3ForCausalLM(Qwen3Config(**{**settings, **MODELS[name]})).to(getattr(torch, precision))
    with tempfile.TemporaryDirectory(prefix="demopsd-model-") as folder:
        model.save_pretrained(folder)
        del model
        left_out = shutil.ignore_patterns("*.safetensors", "config.json")
        shutil.copytree(MODEL_DIR, folder, ignore=left_out, dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<w{i}>" for i in range(len(tokenizer), MODELS[name]["vocab_size"])])
        tokenizer.save_pretrained(folder)
        yield Path(folder)
