"""Export of the student as a Hugging Face model folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from demopsd_dist.config import Config
from workers.learner.lora import Adapters, save_adapters
from workers.learner.zero import full_tensors
from workers.weights.tensor_groups import NamedParameters, NamedTensors


def export_model(
    model: Any,
    base_groups: Sequence[NamedTensors],
    trained: NamedParameters,
    adapters: Adapters,
    config: Config,
    *,
    tokenizer_folder: Path,
    folder: Path,
    rank: int,
) -> None:
    """Write weights, configuration and tokenizer on rank 0; adapters also by themselves, in a subfolder. A collective.

    Args:
        base_groups: the model's own parameters and persistent buffers, in groups that fit into memory.
        trained: the parameters that are trained; with adapters, those of the adapters.
    """
    weights = _full_copies(base_groups, adapters, config.learner.zero_stage, rank)
    adapter_weights = _full_copies([trained], {}, config.learner.zero_stage, rank) if adapters else {}
    if rank:
        return
    from transformers import AutoTokenizer

    model.save_pretrained(folder, state_dict=weights)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    if adapter_weights:
        save_adapters(folder / "adapter", adapter_weights, config.model)
    for path in folder.rglob("*.*"):  # safetensors makes its files readable for the owner alone
        path.chmod(0o666 & ~_umask())


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
