"""One copy of a model's weights among several workers: each keeps some rows of every tensor, and a layer is whole only
while it computes (torch's FSDP2, `fully_shard`).

The forward is bit for bit that of whole weights: they are gathered as they are, and nothing is summed over workers. A
forward is a collective, so workers that share a copy must run equally many.

What FSDP is made of takes a second to import, so only those who share a copy do.
"""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from demopsd_dist.config import Precision
from demopsd_dist.util.errors import ConfigError
from workers.cluster.ranks import MeetingPoint
from workers.forward import PaddedBatch, ResponseModel, layers_of, load_causal_lm

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def join(device: torch.device, rank: int, ranks: int, shards: int, meeting_point: MeetingPoint) -> DeviceMesh:
    """Meet the other workers. The answer are those that share a copy with this one: `shards` consecutive ranks."""
    from torch.distributed.device_mesh import init_device_mesh

    host, port = meeting_point
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"tcp://{host}:{port}", rank=rank, world_size=ranks
    )
    return init_device_mesh(device.type, (ranks // shards, shards), mesh_dim_names=("copies", "shards"))["shards"]


def shared_model(folder: Path, mesh: DeviceMesh) -> ResponseModel:
    """This worker's rows of a model in float32, on its device. At no time has it more than a layer of the others'.

    Raises:
        ConfigError: transformers does not tell the model's layers.
    """
    from torch.distributed.fsdp import fully_shard

    causal = load_causal_lm(folder, None)
    if any(buffer.dtype in (torch.bfloat16, torch.float16) for buffer in causal.buffers()):  # they lost digits
        causal = load_causal_lm(folder, Precision.float32)
    model = ResponseModel(causal.eval().requires_grad_(False))
    layers = layers_of(model)
    if not layers:
        raise ConfigError(
            f"teacher.shards={mesh.size()}: transformers does not tell the layers of {type(causal).__name__}. "
            "Set it to 1."
        )
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    apart = [] if embedding.weight is head.weight else [embedding]
    for part in [*reversed(layers), *apart]:  # a layer inside of another one first
        fully_shard(part.float(), mesh=mesh)
    # The caller applies the head after the forward, so what is left stays whole until then.
    fully_shard(model.float(), mesh=mesh, reshard_after_forward=False)
    dummy_forward(model, torch.device(mesh.device_type))  # FSDP sets itself up
    return model


@torch.inference_mode()
def dummy_forward(model: ResponseModel, device: torch.device) -> None:
    """A forward that is a part of the others'."""
    model(PaddedBatch([], device), lambda *head: head)


def most(mesh: DeviceMesh, count: int) -> int:
    """The largest count of those who share a copy. A collective."""
    counts = torch.tensor(count, device=mesh.device_type)
    torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MAX, group=mesh.get_group())
    return int(counts)


def parameters_of(model: ResponseModel) -> dict[str, nn.Parameter]:
    """By name, as this worker holds them. What forwards have left whole is let go of first, and the account that FSDP
    keeps of them for a backward."""
    if reset := getattr(model, "reset_iter_state", None):
        reset()
    return dict(model.model.named_parameters())


def rows_held(parameter: Tensor) -> slice | EllipsisType:
    """Which rows of the whole tensor this worker holds: none of some, where there are fewer of them than workers."""
    if (mesh := _mesh_of(parameter)) is None:
        return ...
    each = -(-parameter.shape[0] // mesh.size())
    start = mesh.get_local_rank() * each
    return slice(start, start + each)


def held(parameter: Any) -> Tensor:
    """Those rows."""
    return parameter if _mesh_of(parameter) is None else parameter.to_local()


def whole(parameter: Any) -> Tensor:
    """A collective of those who share a copy."""
    return parameter if _mesh_of(parameter) is None else parameter.full_tensor()


def _mesh_of(parameter: Any) -> DeviceMesh | None:
    return getattr(parameter, "device_mesh", None)  # a tensor in shards, torch's DTensor, has one
