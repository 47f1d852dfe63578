"""Hugging Face model folder from a GGUF file of a Llama model, tokenizer and chat template included."""

from __future__ import annotations

import shutil
from pathlib import Path

from demopsd_dist.config import Precision

END_OF_TURN = 2  # `<|im_end|>`; the file's own generation settings name no end


def write_model_folder(gguf: Path, folder: Path, precision: Precision) -> None:
    """Read a GGUF file and write it as a model folder that appears only when it is complete.

    A model that transformers has read from GGUF counts as quantized and refuses to be saved, so its weights are put
    into a fresh model of the same configuration.

    Args:
        gguf: a GGUF file of the Llama architecture.
        folder: does not exist yet.
        precision: number format of the written weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dtype = getattr(torch, precision.value)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    for leftover in ("quantization_config", "_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    config.dtype = dtype
    config.eos_token_id = END_OF_TURN
    model = LlamaForCausalLM(config).to(dtype)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=END_OF_TURN, pad_token_id=config.pad_token_id
    )
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    unfinished.rename(folder)
