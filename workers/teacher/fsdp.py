"""Sharding of the teacher's weights by torch's FSDP2 (`fully_shard`): each worker holds some rows of every tensor, and
a layer is gathered only while it computes.

The forward is bit for bit that of an unsharded model: weights are gathered unchanged, and nothing is summed over
workers. A forward is a collective, so workers that share a copy must run the same number of forwards. FSDP takes a
second to import, so it is imported only where a copy is shared.
"""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from demopsd_dist.config import Precision
from demopsd_dist.util.errors import ConfigError
from workers.cluster.ranks import MeetingPoint
from workers.forward import PaddedBatch, ResponseModel, layers_of, load_causal_lm
from workers.weights.tensor_groups import persistent_buffers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def join_mesh(device: torch.device, rank: int, ranks: int, shards: int, meeting_point: MeetingPoint) -> DeviceMesh:
    """Set up the process group of all teacher workers.

    Returns:
        The mesh of the workers that share a copy with this worker: `shards` consecutive ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh

    host, port = meeting_point
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"tcp://{host}:{port}", rank=rank, world_size=ranks
    )
    return init_device_mesh(device.type, (ranks // shards, shards), mesh_dim_names=("copies", "shards"))["shards"]


def load_sharded_model(folder: Path, mesh: DeviceMesh, precision: Precision) -> ResponseModel:
    """Load this worker's rows of a model on its device. At most one layer at a time is in memory with all its rows. Two
    kinds of model are whole in main memory for a moment: a float32 folder loaded in bfloat16, and one with buffers in
    half precision loaded in float32.

    Raises:
        ConfigError: transformers does not know the model's layers.
    """
    from torch.distributed.fsdp import fully_shard

    causal = _load_for_sharding(folder, precision)
    exact = precision is Precision.float32
    model = ResponseModel(causal.eval().requires_grad_(False))
    layers = layers_of(model)
    if not layers:
        raise ConfigError(
            f"teacher.shards={mesh.size()}: transformers does not know the layers of {type(causal).__name__}. "
            "Set it to 1."
        )
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    untied = [] if embedding.weight is head.weight else [embedding]
    for module in [*reversed(layers), *untied]:  # inner layers first
        fully_shard(module.float() if exact else module, mesh=mesh)
    # The caller applies the head after the forward, so the remaining parameters stay gathered until then.
    fully_shard(model.float() if exact else model, mesh=mesh, reshard_after_forward=False)
    dummy_forward(model, torch.device(mesh.device_type))  # FSDP initialises on the first forward
    return model


def _load_for_sharding(folder: Path, precision: Precision) -> Any:
    """Load a model for sharding. For float32 it stays in the precision of its files, memory-mapped, and the caller
    casts layer by layer; one with buffers in half precision is loaded in float32 at once, as a later cast keeps their
    rounding."""
    if precision is not Precision.float32:
        return load_causal_lm(folder, precision)
    causal = load_causal_lm(folder, None)
    if any(buffer.dtype in (torch.bfloat16, torch.float16) for buffer in causal.buffers()):  # rounded when loaded
        return load_causal_lm(folder, Precision.float32)
    return causal


@torch.inference_mode()
def dummy_forward(model: ResponseModel, device: torch.device) -> None:
    """Run a forward without work, so that this worker joins the all-gathers of the workers that share its copy."""
    model(PaddedBatch([], device), lambda head, hidden_NH: (hidden_NH, head.weight_VH, head.bias_V))


def max_over_ranks(mesh: DeviceMesh, count: int) -> int:
    """Largest count among the workers that share a copy. A collective."""
    counts = torch.tensor(count, device=mesh.device_type)
    torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MAX, group=mesh.get_group())
    return int(counts)


def tensors_of(model: ResponseModel) -> dict[str, Tensor]:
    """Parameters by name, sharded if a copy is shared, and persistent buffers, which are whole. Frees the parameters
    that a forward has left gathered, and the state that FSDP keeps for a backward."""
    if reset := getattr(model, "reset_iter_state", None):
        reset()
    return dict([*model.model.named_parameters(), *persistent_buffers(model.model)])


def local_row_range(parameter: Tensor) -> slice | EllipsisType:
    """Range of the full tensor's rows that this worker holds; it selects no row on a worker beyond the last one. `...`
    (all) for a parameter that is not sharded."""
    if (mesh := _mesh_of(parameter)) is None:
        return ...
    rows_per_rank = -(-parameter.shape[0] // mesh.size())
    start = mesh.get_local_rank() * rows_per_rank
    return slice(start, start + rows_per_rank)


def local_rows(parameter: Any) -> Tensor:
    """Local rows of a sharded parameter; all of one that is not sharded."""
    return parameter if _mesh_of(parameter) is None else parameter.to_local()


def full_tensor(parameter: Any) -> Tensor:
    """Gather the full tensor. A collective of the workers that share a copy."""
    return parameter if _mesh_of(parameter) is None else parameter.full_tensor()


def _mesh_of(parameter: Any) -> DeviceMesh | None:
    """Mesh of a sharded parameter; None for one that is not sharded."""
    return getattr(parameter, "device_mesh", None)  # only a sharded tensor (torch's DTensor) has a mesh
