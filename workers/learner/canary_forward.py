"""Log-probabilities of the canary prompt by the learner's forward: of the student in training, and of its export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from demopsd_dist.config import Precision
from demopsd_dist.data.records import Tokens
from demopsd_dist.objective import OutputHead
from workers.forward import PaddedBatch, ResponseModel, load_causal_lm
from workers.weights.canary import LogpT

HeadFunction = Callable[[OutputHead, Tensor], Tensor]


def canary_logp(model: Callable[[PaddedBatch, HeadFunction], Tensor], tokens: Tokens, device: torch.device) -> LogpT:
    """Compute the log-probability of each token after the first.

    Args:
        model: a `ResponseModel`, or the DeepSpeed engine around one: under ZeRO-3 the call is a collective.
    """
    batch = PaddedBatch([[(tokens[:1], tokens[1:])]], device)

    def logp_of(head: OutputHead, hidden_NH: Tensor) -> Tensor:
        logits_NV = head.logits(hidden_NH).float()
        return logits_NV.log_softmax(-1).gather(-1, batch.response_N[:, None])[:, 0]

    with torch.no_grad():
        return model(batch, logp_of).cpu().numpy()


def exported_canary_logp(folder: Path, precision: Precision, tokens: Tokens) -> LogpT:
    """The same by the model of a folder, loaded into main memory.

    Raises:
        ConfigError: a tensor of the model is not in the folder, or one of the folder not in the model.
    """
    model = ResponseModel(load_causal_lm(folder, precision)).eval()
    return canary_logp(model, tokens, torch.device("cpu"))
