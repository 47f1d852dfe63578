"""Losses as pure tensor mathematics: torch only; no configuration, process groups, input or output.

Legend of shapes: B sequences, T response tokens, V vocabulary, K support ids, A atoms (K + 1 with the tail bucket, or V
when the support is the whole vocabulary). Distributions are given as natural-log probabilities, in the caller's float
type; half-precision logits are lifted to float32.

A method (`DemoPSD`, `SDPO`, `OPSD`, `GRPO`, `Mixed`) is a record of its settings that maps `TokenViews` to a loss of
each token; `reduced` takes the mean; `fused_loss` starts from hidden states and an `OutputHead`, and calls both for a
slice of tokens at a time. Alpha is computed in `demopsd.py`, with the formulas of `barycenter.py`. To use the
DemoPSD loss in another trainer, call `demopsd_loss` (`standalone_loss.py`).
"""

from demopsd_dist.objective.barycenter import barycenter, tanh_gate, threshold_gate
from demopsd_dist.objective.candidates import candidate_indices, target_of
from demopsd_dist.objective.demopsd import DemoPSD, GatedTarget
from demopsd_dist.objective.divergence import (
    atom_entropy,
    disagreement,
    floored,
    generalised_kl,
    skewed_jsd_terms,
)
from demopsd_dist.objective.fused import TokenSlice, fused_loss
from demopsd_dist.objective.grpo import GRPO
from demopsd_dist.objective.leakage import leakage_terms, mutual_information, ordering_terms
from demopsd_dist.objective.logit_transform import LogitTransform, OutputHead
from demopsd_dist.objective.method import Loss, Objective, TokenLoss, TokenViews, reduced, statistic, token_weight
from demopsd_dist.objective.mixed import Mixed, gated, with_gated
from demopsd_dist.objective.opsd import OPSD
from demopsd_dist.objective.sdpo import SDPO
from demopsd_dist.objective.standalone_loss import DemoPSDLoss, demopsd_loss
from demopsd_dist.objective.support import SLICE_TOKENS, coarsen, entropy, mixed_logits, row_slices, top_k_support

__all__ = [
    "GRPO",
    "OPSD",
    "SDPO",
    "SLICE_TOKENS",
    "DemoPSD",
    "DemoPSDLoss",
    "GatedTarget",
    "LogitTransform",
    "Loss",
    "Mixed",
    "Objective",
    "OutputHead",
    "TokenLoss",
    "TokenSlice",
    "TokenViews",
    "atom_entropy",
    "barycenter",
    "candidate_indices",
    "coarsen",
    "demopsd_loss",
    "disagreement",
    "entropy",
    "floored",
    "fused_loss",
    "gated",
    "generalised_kl",
    "leakage_terms",
    "mixed_logits",
    "mutual_information",
    "ordering_terms",
    "reduced",
    "row_slices",
    "skewed_jsd_terms",
    "statistic",
    "tanh_gate",
    "target_of",
    "threshold_gate",
    "token_weight",
    "top_k_support",
    "with_gated",
]
