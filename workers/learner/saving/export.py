"""Export of the student as a Hugging Face model folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from demopsd_dist.config import Config
from workers.learner.lora import Adapters, save_adapters
from workers.learner.zero import full_tensors
from workers.weights.tensor_groups import NamedParameters, NamedTensors

COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
    "LICENSE*",
)
"""Files of a model folder beside weights and config.json, which training does not change."""


def export_model(
    model: Any,
    base_groups: Sequence[NamedTensors],
    trained: NamedParameters,
    adapters: Adapters,
    config: Config,
    *,
    model_folder: Path,
    folder: Path,
    rank: int,
) -> None:
    """Write weights and configuration on rank 0, with the companion files of the model's folder; adapters also by
    themselves, in a subfolder. A collective.

    The folder is complete as soon as it is there: an earlier export in it is replaced as a whole.

    Args:
        model_folder: the folder that the model was loaded from.
        base_groups: the model's own parameters and persistent buffers, in groups that fit into memory.
        trained: the parameters that are trained; with adapters, those of the adapters.
    """
    weights = _full_copies(base_groups, adapters, config.learner.zero_stage, rank)
    adapter_weights = _full_copies([trained], {}, config.learner.zero_stage, rank) if adapters else {}
    if rank:
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _save(model, weights, unfinished)
    copy_companions(model_folder, unfinished)
    if adapter_weights:
        save_adapters(unfinished / "adapter", adapter_weights, config.model)
    for path in unfinished.rglob("*.*"):  # safetensors makes its files readable for the owner alone
        path.chmod(0o666 & ~_umask())
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _save(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Write weights and config.json. Sampling defaults are not written: transformers refuses to save some that it has
    loaded, so their file is a companion."""
    from transformers import GenerationConfig

    defaults = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.generation_config = defaults
    (folder / "generation_config.json").unlink(missing_ok=True)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat templates, processors, sampling defaults and licence of a model's folder, byte for byte."""
    paths = {path for pattern in COMPANIONS for path in source.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _full_copies(groups: Sequence[NamedTensors], adapters: Adapters, zero_stage: int, rank: int) -> dict[str, Tensor]:
    """Copies of the full tensors on rank 0; empty on the others. A collective."""
    copies: dict[str, Tensor] = {}
    for group in groups:
        with full_tensors(group, zero_stage, adapters) as tensors:
            if rank == 0:
                copies |= {name: tensor.detach().cpu().clone() for name, tensor in tensors}
    return copies


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
