"""Checkpoint of the learners: full tensors by name, for any number of ranks and any ZeRO stage.

For each parameter its float32 value and AdamW's two moments (`moments.py`), in safetensors files of about a gigabyte;
each file is written by one of the ranks. Persistent buffers, which training does not change, are in a file of their
own. Saving and loading are collectives: every rank goes through all parameters, in order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Parameter

from demopsd_dist.run_record.folder import writing
from demopsd_dist.util.errors import CheckpointError
from workers.learner.saving.moments import (
    MOMENTS,
    full_moment,
    is_8bit,
    loaded_moments,
    moment_keys,
    optimizer_steps,
    readable_moments,
    torch_optimizer,
)
from workers.weights.tensor_files import refuse_non_finite, write_tensors
from workers.weights.tensor_groups import FILE_BYTES, NamedParameters, NamedTensors, full_shape, group_by_bytes

INDEX = "index.json"
CONSTANTS = "constants.safetensors"


def _file_groups(named: NamedParameters) -> Iterator[NamedParameters]:
    """Group consecutive parameters so that the tensors of each group fill one file of about FILE_BYTES."""
    return group_by_bytes(named, FILE_BYTES, bytes_per_element=4 * (1 + len(MOMENTS)))


def save(engine: Any, named: NamedParameters, folder: Path, version: int, constants: NamedTensors = ()) -> None:
    """Write a checkpoint. A collective.

    Args:
        named: the parameters that are trained.
        folder: an existing folder on a file system that all ranks share.
        version: training steps done.
        constants: the model's persistent buffers, equal on all ranks.

    Raises:
        RunFolderError: a file cannot be written.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    keys = moment_keys(engine)
    with readable_moments(engine):
        for number, group in enumerate(_file_groups(named)):
            is_writer = number % ranks == rank
            tensors: dict[str, Tensor] = {}
            for name, parameter in group:
                for key, tensor in full_state(engine, parameter, keys):
                    if is_writer:
                        tensors[f"{name}/{key}"] = tensor.detach().cpu().clone()
            if is_writer:
                write_tensors(tensors, folder / f"weights-{number:05d}.safetensors")
    if rank == 0:
        if constants:
            write_tensors({name: tensor.cpu().clone() for name, tensor in constants}, folder / CONSTANTS)
        shapes = {name: list(full_shape(tensor)) for name, tensor in [*named, *constants]}
        index = {"version": version, "optimizer_steps": optimizer_steps(engine), "moments": keys, "shapes": shapes}
        with writing(folder / INDEX):
            (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
            _sync(folder / INDEX)


def load(engine: Any, named: NamedParameters, folder: Path, constants: NamedTensors = ()) -> int:
    """Load a checkpoint into an engine that has made no step yet. A collective.

    Returns:
        The checkpoint's version: the number of training steps done when it was saved.

    Raises:
        CheckpointError: the checkpoint is of another model than `model.path`, or has values that are not finite.
    """
    index = json.loads((folder / INDEX).read_text())
    shapes = {name: list(full_shape(tensor)) for name, tensor in [*named, *constants]}
    if shapes != index["shapes"]:
        names = shapes.keys() | index["shapes"].keys()
        other = sorted(name for name in names if shapes.get(name) != index["shapes"].get(name))
        raise CheckpointError(
            f"{folder} is of another model than model.path: {len(other)} tensors are missing on one side or have "
            f"another shape, first {other[0]}. Set model.path to the model of that run."
        )
    steps = index["optimizer_steps"]
    saved = index.get("moments", MOMENTS) if steps else ()
    keys = [key for key in saved if key in MOMENTS or is_8bit(engine)]
    with loaded_moments(engine, steps, keys) if steps else nullcontext():
        for number, group in enumerate(_file_groups(named)):
            _load_file(engine, group, folder / f"weights-{number:05d}.safetensors", ("value", *keys))
    if constants:
        with safe_open(folder / CONSTANTS, framework="pt") as file:
            for name, tensor in constants:
                tensor.copy_(file.get_tensor(name))
    return int(index["version"])


def _load_file(engine: Any, group: NamedParameters, path: Path, keys: Sequence[str]) -> None:
    """Load the parameters of one file.

    Raises:
        CheckpointError: a tensor has values that are not finite.
    """
    with safe_open(path, framework="pt") as file:
        for name, parameter in group:
            state = {key: file.get_tensor(f"{name}/{key}") for key in keys}
            for key, tensor in state.items():
                refuse_non_finite(tensor, f"{name}/{key}", path.parent)
            _load_state(engine, parameter, state)


def full_state(engine: Any, parameter: Parameter, moments: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Gather a parameter's float32 value and these of its moments as full tensors. A collective, in
    `readable_moments`."""
    from deepspeed.utils import safe_get_full_fp32_param

    sharded = hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
    yield "value", (safe_get_full_fp32_param(parameter) if sharded else parameter.data).view(full_shape(parameter))
    for key in moments:
        yield key, full_moment(engine, parameter, key)


def _load_state(engine: Any, parameter: Parameter, state: dict[str, Tensor]) -> None:
    """Copy a parameter's float32 value and moments into this rank's optimizer, and the value into the model's own
    parameter."""
    value = state["value"].to(parameter.device)
    if hasattr(parameter, "ds_id"):
        _load_shard(parameter, state)
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)
        for key in state.keys() - {"value"}:
            safe_set_full_optimizer_state(parameter, state[key].to(parameter.device), key)
    else:
        parameter.data.copy_(value)
        for key in state.keys() - {"value"}:
            torch_optimizer(engine).state[parameter][key].copy_(state[key])


def _load_shard(parameter: Any, state: dict[str, Tensor]) -> None:
    """Set this rank's piece under ZeRO-3: ranks hold equal pieces of the flat tensor, the last padded with zeros."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    piece = parameter.ds_tensor.numel()
    for key, tensor in state.items():
        flat = torch.zeros(piece * ranks)
        flat[: tensor.numel()] = tensor.reshape(-1)
        shard = flat[piece * rank : piece * (rank + 1)].to(parameter.ds_tensor.device)
        if key == "value":
            safe_set_local_fp32_param(parameter, shard)
            parameter.ds_tensor.data.copy_(shard)
        else:
            safe_set_local_optimizer_state(parameter, shard, key)


def _sync(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
