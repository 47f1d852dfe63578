"""Zoo of tiny models with random weights, and their model folders with MiniSci's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models.architecture import VOCABULARY, Architecture
from benchmarks.models.dense_models import DENSE
from benchmarks.models.mixed_models import MIXED
from demopsd_dist.minisci import MODEL_DIR

if TYPE_CHECKING:
    from torch import Tensor

ZOO = {architecture.name: architecture for architecture in (*DENSE, *MIXED)}
WEIGHT_SCALE = 4.0  # of matrices: with the usual initialization two layers change little, and no error shows
SPREAD_NATS = 2.5  # standard deviation of the logits over the vocabulary
PROBE_TOKENS = 48


def build(architecture: Architecture, folder: Path) -> None:
    """Build the model and write its folder, the same in every call.

    Weights are random with a fixed seed; vectors and buffers are moved away from 0 and 1, and the output matrix is
    scaled so that the logits spread over several nats.

    Args:
        folder: does not exist yet.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, architecture.config_class)(**architecture.settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        _spread_weights(model)
        _scale_logits(model)
    model.save_pretrained(folder)
    left_out = shutil.ignore_patterns("*.safetensors", "config.json", "BUILD.json", "generation_config.json")
    shutil.copytree(MODEL_DIR, folder, ignore=left_out, dirs_exist_ok=True)


def _spread_weights(model: Any) -> None:
    import torch

    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.mul_(WEIGHT_SCALE)
        else:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    state = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in state and buffer.is_floating_point():
            buffer.add_(0.2 * torch.rand(buffer.shape, generator=random))


def _scale_logits(model: Any) -> None:
    """Scale the output matrix to `SPREAD_NATS`, in a few rounds: tied to the embedding it changes the layers' input."""
    import torch

    matrix = model.get_output_embeddings().weight
    for _ in range(4):
        spread = float(probe_logits(model).std(-1).mean())
        matrix.mul_(min(max(SPREAD_NATS / spread, 0.1), 10.0))
    assert torch.isfinite(matrix).all()


def probe_tokens() -> Tensor:
    """Random ids (1, L), the same in every call."""
    import torch

    return torch.randint(0, VOCABULARY, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(2))


def probe_logits(model: Any) -> Tensor:
    """Logits (1, L, V) of `probe_tokens`, by the model's own class."""
    import torch

    with torch.no_grad():
        return model(input_ids=probe_tokens(), use_cache=False).logits.float()
