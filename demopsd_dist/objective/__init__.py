"""The mathematics of DemoPSD: torch only, no configuration, no process groups, no input or output.

Legend of shapes: B sequences, T response tokens, V vocabulary, K support ids, A atoms (K + 1 with the tail bucket, or V
when the support is the whole vocabulary). Distributions are given as natural-log probabilities, in the caller's float
type; half-precision logits are lifted to float32.
"""

from demopsd_dist.objective.barycenter import barycenter, disagreement, floored, gate, generalised_kl
from demopsd_dist.objective.demopsd import (
    DemoPSDLoss,
    demopsd_loss,
    demopsd_loss_on_atoms,
    demopsd_loss_on_support,
)
from demopsd_dist.objective.fused import Slice, fused_loss
from demopsd_dist.objective.support import coarsen, entropy, top_k_support

__all__ = [
    "DemoPSDLoss",
    "Slice",
    "barycenter",
    "coarsen",
    "demopsd_loss",
    "demopsd_loss_on_atoms",
    "demopsd_loss_on_support",
    "disagreement",
    "entropy",
    "floored",
    "fused_loss",
    "gate",
    "generalised_kl",
    "top_k_support",
]
