"""vLLM's native weight-transfer API, with the object store as transport. Imported only where vLLM is."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from demopsd_dist.errors import WeightSyncError
from workers.weights import Bucket, unpack_bucket

BACKEND = "demopsd_object_store"


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    receiver: str  # for messages: "rollout 0"


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    buckets: list[Bucket] = field(default_factory=list)


class ObjectStoreEngine(WeightTransferEngine[ObjectStoreInit, ObjectStoreUpdate]):
    """Loads verified buckets of checkpoint-format tensors. vLLM fuses, shards and re-packs them as at first load."""

    init_info_cls = ObjectStoreInit
    update_info_cls = ObjectStoreUpdate

    def init_transfer_engine(self, init_info: ObjectStoreInit) -> None:
        self._receiver = init_info.receiver

    def start_weight_update(self) -> None:
        self._loaded: set[str] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        for bucket in update_info.buckets:
            self._loaded |= self.model.load_weights(unpack_bucket(bucket)) or set()

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # the base class synchronizes always, which a CPU build refuses
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():  # on CPU a head tied to the embedding keeps the packed copy of the old one
            if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)
        missing = {name for name, _ in self.model.named_parameters()} - self._loaded
        if missing:
            raise WeightSyncError(
                f"{self._receiver} was not sent {len(missing)} of its tensors, first {sorted(missing)[0]}; it "
                "would go on sampling from old ones."
            )

    def shutdown(self) -> None:
        pass


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreEngine)
