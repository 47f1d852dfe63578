"""Tensors of a checkpoint on disk: a full disk and values that are not finite are named as such."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demopsd_dist.util.errors import CheckpointError, RunFolderError
from workers.weights.tensor_files import refuse_non_finite, write_tensors


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    write_tensors(tensors, tmp_path / "file", {"version": "3"})
    found = load_file(tmp_path / "file")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "weights-00000.safetensors"
    with pytest.raises(RunFolderError, match=r"weights-00000\.safetensors cannot be written: .*free disk space"):
        write_tensors({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    tensor = torch.ones(2, 3)
    refuse_non_finite(tensor, "lm_head.weight/value", tmp_path)
    tensor[1, 2] = value
    with pytest.raises(CheckpointError, match=r"lm_head\.weight/value has 1 of 6 values that are not finite"):
        refuse_non_finite(tensor, "lm_head.weight/value", tmp_path)
