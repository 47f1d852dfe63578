"""Loading of weight buckets by vLLM's native weight-transfer API.

Imported only where vLLM is: in the rollout worker, and in the child processes of an engine with `tensor_parallel` (as
its `worker_extension_cls`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _layerwise_process, get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_layer

from demopsd_dist.util.die_with_parent import die_with_parent
from demopsd_dist.util.errors import WeightSyncError
from workers.weights.buckets import Bucket, BucketRef, InBroadcast, unpack_bucket, verify_bucket
from workers.weights.checkpoint_format import CheckpointViews, as_checkpoint
from workers.weights.collective import receive_bucket
from workers.weights.process_group import GroupMeeting, GroupMember
from workers.weights.transports import MappedSegments

BACKEND = "demopsd_buckets"


@dataclass
class BucketInit(WeightTransferInitInfo):
    """Settings of the backend."""

    receiver: str  # for messages: "rollout 0"


@dataclass
class BucketUpdate(WeightTransferUpdateInfo):
    """Buckets of a publish, read one after the other; a child process gets references into shared memory instead, or to
    broadcasts that it is part of. Or a model folder with all tensors."""

    buckets: Iterable[Bucket | BucketRef] = field(default_factory=list)
    complete: bool = True  # True if no more buckets of this publish follow
    checkpoint_views: CheckpointViews = field(default_factory=dict)  # of the tensors in these buckets
    folder: Path | None = None


class BucketEngine(WeightTransferEngine[BucketInit, BucketUpdate]):
    """Loader of verified buckets of checkpoint-format tensors. vLLM fuses, shards and re-packs them as at first load.

    It keeps a layer's tensors until the last of them has arrived, which may be a bucket later: the bytes of a bucket
    must not change until the update is finished.
    """

    init_info_cls = BucketInit
    update_info_cls = BucketUpdate

    def init_transfer_engine(self, init_info: BucketInit) -> None:
        """Prepare to receive weights."""
        self._receiver = init_info.receiver
        self._segments = MappedSegments()
        self._member: GroupMember | None = None
        self._direct = directly_written_layers(self.model)
        register_head_bias(self.model, Path(self.model_config.model), self.device)
        if self.device.type == "cpu":
            pack_experts_at_every_load(self.model)

    def start_weight_update(self) -> None:
        """Begin a publish."""
        self._missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        for layer in self._direct:
            materialize_layer(layer, get_layerwise_info(layer))

    def receive_weights(self, update_info: BucketUpdate) -> None:
        """Load buckets, or the files of a folder.

        Raises:
            WeightSyncError: a bucket is late, damaged or incomplete, or a tensor of the model was not in any bucket.
        """
        try:
            for bucket in update_info.buckets:
                arrived = bucket if isinstance(bucket, Bucket) else self._arrived(bucket)
                tensors = as_checkpoint(unpack_bucket(arrived), update_info.checkpoint_views)
                self._missing -= self.model.load_weights(tensors) or set()
            if update_info.folder is not None:
                self._missing -= self.model.load_weights(_tensors_in(update_info.folder)) or set()
            if update_info.complete:
                self._refuse_missing()
        except BaseException:
            if self._member is not None:
                self._member.close()  # the others need not wait for this process
            self.finish_weight_update()  # drops tensors of incomplete layers, which would count as the next update's
            raise

    def join_group(self, meeting: GroupMeeting, rank: int, address: str) -> None:
        """Join a publishing group in place of the last one, as a child process of an engine.

        Raises:
            BrokenGroupError: the others did not join in time.
        """
        if self._member is not None:
            self._member.close()
        self._member = GroupMember(meeting, rank, address)

    def _arrived(self, bucket_ref: BucketRef) -> Bucket:
        """Bucket in shared memory, which the rollout worker has checked, or the next one of a broadcast."""
        if not isinstance(bucket_ref.location, InBroadcast):
            return self._segments.bucket(bucket_ref)
        bucket = receive_bucket(self._member, bucket_ref.header)
        verify_bucket(bucket, self._receiver)
        return bucket

    def _refuse_missing(self) -> None:
        if missing := self._missing:
            raise WeightSyncError(
                f"{self._receiver} was not sent {len(missing)} of its tensors, first {min(missing)}; it would "
                "continue to sample from their old values."
            )

    def update_weights(self, update_info: dict) -> None:
        """Load some buckets of a publish, and wait until the device has them."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # the base class always synchronizes, which fails in a CPU build
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """End a publish: let vLLM process the loaded layers."""
        for layer in self._direct:
            _layerwise_process(layer, get_layerwise_info(layer))
        finalize_layerwise_reload(self.model, self.model_config)
        pack_tied_heads(self.model)

    def shutdown(self) -> None:
        """Do nothing."""


def _tensors_in(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a folder's files of weights."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (it is no mapping)


def pack_tied_heads(model: torch.nn.Module) -> None:
    """Pack a tied head again. On CPU a head keeps a packed copy of its weights, which vLLM does not renew for a head
    that is tied to the embedding."""
    embeddings = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    for head in embeddings:
        tied = any(other is not head and other.weight is head.weight for other in embeddings)
        if tied and isinstance(head, ParallelLMHead) and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)


def register_head_bias(model: torch.nn.Module, folder: Path, device: torch.device) -> None:
    """Give the head its bias if the model's files have one. vLLM's class for models of transformers (Phi) registers it
    only while it loads weights; a reload would not know it, and leave the head without."""
    names = (name for path in sorted(folder.glob("*.safetensors")) for name in _names_in(path))
    if not any(name.endswith("lm_head.bias") for name in names):
        return
    for head in model.modules():
        if isinstance(head, ParallelLMHead) and head.bias is None:
            with torch.device(device):
                head._register_bias()


def _names_in(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def pack_experts_at_every_load(model: torch.nn.Module) -> None:
    """Let each layer of experts pack its weights whenever they are loaded. On CPU vLLM computes with packed experts,
    but packs them only at the first load; after a reload it would read plain weights as packed ones."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.process_weights_after_loading = partial(_process_and_pack, method.process_weights_after_loading)


def _process_and_pack(process: Callable[[torch.nn.Module], None], layer: Any) -> None:
    process(layer)
    layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)


def directly_written_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Layers whose tensors vLLM's loader of the model writes itself, instead of calling the tensors' own loaders. A
    reload does not notice this and would keep their old weights: it needs their tensors in memory before they are
    written, and has to be asked to process them afterwards."""
    if not any(type(module).__name__ == "GptOssModel" for module in model.modules()):
        return []
    direct = {"w13_weight", "w2_weight", "w13_bias", "w2_bias", "sinks"}
    return [layer for layer in model.modules() if direct & {name for name, _ in layer.named_parameters(recurse=False)}]


class EngineProcessExtension:
    """Extension of an engine's child processes. By importing it there, vLLM registers this backend and ends the process
    with the rollout worker."""

    rank: int  # of the process in its engine
    weight_transfer_engine: Any

    def join_weight_group(self, meeting: GroupMeeting, first_rank: int, address: str) -> None:
        """Join a publishing group: `BucketEngine.join_group`."""
        self.weight_transfer_engine.join_group(meeting, first_rank + self.rank, address)


WORKER_EXTENSION = f"{__name__}.{EngineProcessExtension.__name__}"
WeightTransferEngineFactory.register_engine(BACKEND, BucketEngine)
if multiprocessing.parent_process() is not None:
    die_with_parent()
