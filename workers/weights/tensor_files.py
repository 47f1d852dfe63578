"""Tensors of a checkpoint: writing a file, with its path in the error; refusing values that are not finite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from demopsd_dist.util.errors import CheckpointError, RunFolderError


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, and flush it to disk.

    Raises:
        RunFolderError: it cannot be written: the disk is full or read-only.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"{path} cannot be written: {error}. Earlier checkpoints are intact; free disk space or repair the disk, "
            "then resume."
        ) from None


def refuse_non_finite(tensor: Tensor, name: str, folder: Path) -> None:
    """Refuse a tensor of a checkpoint with NaN or infinite values.

    Raises:
        CheckpointError: naming the tensor and the number of such values.
    """
    if tensor.isfinite().all():
        return
    count = tensor.numel() - int(tensor.isfinite().sum())
    raise CheckpointError(
        f"{folder}: {name} has {count} of {tensor.numel()} values that are not finite; no training can go on from "
        "them. Resume from an earlier checkpoint (--resume-from)."
    )
