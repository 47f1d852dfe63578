"""Tensors that the loss of one micro-batch reads, beside the student's own forward.

N counts the response tokens of the micro-batch, sample after sample; K the support ids; A
the atoms, which are the support ids and the tail, or the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demopsd_dist.data.records import BatchSize, Logp, ScoredExample
from demopsd_dist.objective import TokenSlice, TokenViews, token_weight
from demopsd_dist.objective.method import Aggregation
from demopsd_dist.objective.support import LEAST_LOGP
from workers.forward import support_tensor


@dataclass(frozen=True)
class LossInputs:
    """Values of every response token of one micro-batch, on the learner's device."""

    rollout_ids: tuple[str, ...]
    lengths: tuple[int, ...]  # response tokens of each rollout
    response_N: Tensor  # the sampled token ids
    support_NK: Tensor | None  # None: the atoms are the vocabulary
    reference_logp_NA: Tensor | None  # None: the method has no reference, or it is the live student
    teacher_logp_NA: Tensor | None
    rollout_logp_N: Tensor  # of the sampled tokens, by the rollout engine
    advantage_N: Tensor
    weight_N: Tensor  # of each token's loss
    fresh_N: Tensor  # bool: sampled from the weights that this step starts from
    any_fresh: bool
    alpha_N: Tensor | None = None  # of a gate that looks at whole responses; None: the method computes it by token
    policy_weight_N: Tensor | None = None  # of the two terms of a mixed loss; None for any other
    distillation_weight_N: Tensor | None = None

    @classmethod
    def from_examples(
        cls,
        scored: Sequence[ScoredExample],
        *,
        aggregation: Aggregation,
        size: BatchSize,
        max_tokens: int,
        version: int,
        device: torch.device,
    ) -> LossInputs:
        """Collect the tensors of the scored examples of one micro-batch.

        Args:
            scored: at least one, in the order of the forward.
            aggregation: weighs the tokens, see `token_weight`.
            size: tokens and responses of the global batch.
            max_tokens: the longest response that sampling allows.
            version: of the weights that the step starts from.
        """
        rollouts = [item.rollout for item in scored]
        lengths = tuple(len(rollout.tokens_T) for rollout in rollouts)
        length_B = torch.tensor(lengths, device=device)
        weight_B = token_weight(
            aggregation, length_B, token_count=size.tokens, sequence_count=size.sequences, max_tokens=max_tokens
        )
        # On tokens of the current weights engine and learner differ by rounding alone; on older ones the weights moved.
        fresh_N = _tensor([rollout.version_T == version for rollout in rollouts], device)
        advantage_B = torch.tensor([item.example.advantage for item in scored], device=device)
        policy_weight_N, distillation_weight_N = _term_weights(scored, length_B)
        return cls(
            rollout_ids=tuple(rollout.id for rollout in rollouts),
            lengths=lengths,
            response_N=_tensor([rollout.tokens_T for rollout in rollouts], device).long(),
            support_NK=support_tensor([item.support_TK for item in scored], device),
            reference_logp_NA=_logp_tensor([item.reference_logp_TA for item in scored], device),
            teacher_logp_NA=_logp_tensor([_teacher_logp(item) for item in scored], device),
            rollout_logp_N=_tensor([rollout.logp_T for rollout in rollouts], device),
            advantage_N=advantage_B.repeat_interleave(length_B),
            weight_N=weight_B.float().repeat_interleave(length_B),
            fresh_N=fresh_N,
            any_fresh=bool(fresh_N.any()),
            policy_weight_N=policy_weight_N,
            distillation_weight_N=distillation_weight_N,
        )

    def logp_difference(self, part: TokenSlice) -> Tensor:
        """Log-probability of the slice's sampled tokens by the student minus that by the rollout engine, nats."""
        return part.token_logp(self.response_N[part.tokens]) - self.rollout_logp_N[part.tokens]

    def views(self, part: TokenSlice) -> TokenViews:
        """Input of the method at the tokens of a slice."""
        tokens = part.tokens
        return TokenViews(
            part.student_logp_NA,
            None if self.reference_logp_NA is None else self.reference_logp_NA[tokens],
            None if self.teacher_logp_NA is None else self.teacher_logp_NA[tokens],
            importance_ratio_BT=self.logp_difference(part).clamp(-20.0, 20.0).exp(),
            advantage_BT=self.advantage_N[tokens],
            has_tail=self.support_NK is not None,
            alpha_BT=None if self.alpha_N is None else self.alpha_N[tokens],
            policy_weight_BT=None if self.policy_weight_N is None else self.policy_weight_N[tokens],
            distillation_weight_BT=None if self.distillation_weight_N is None else self.distillation_weight_N[tokens],
        )


def _term_weights(scored: Sequence[ScoredExample], length_B: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Weights of the policy gradient and of the distillation at each response token, (N,) each; None if the method does
    not mix them."""
    terms = [item.example.terms for item in scored]
    mixed = [each for each in terms if each is not None]
    if not mixed:
        return None, None
    policy_B = torch.tensor([each.policy for each in mixed], device=length_B.device)
    distillation_B = torch.tensor([each.distillation for each in mixed], device=length_B.device)
    return policy_B.repeat_interleave(length_B), distillation_B.repeat_interleave(length_B)


def _teacher_logp(item: ScoredExample) -> Logp | None:
    """Log-probabilities (T, A) of the teacher. Where a mixed loss has no teacher for a response, all mass is on the
    tail: finite values, from which nothing is learned, and no token among the candidates of a record."""
    if item.teacher_logp_TA is not None or item.example.terms is None:
        return item.teacher_logp_TA
    tokens, ids = item.support_TK.shape
    logp_TA = np.full((tokens, ids + 1), LEAST_LOGP, np.float32)
    logp_TA[:, -1] = 0.0
    return logp_TA


def _tensor(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Arrays of several samples as one tensor (N, ...)."""
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _logp_tensor(arrays: Sequence[Logp | None], device: torch.device) -> Tensor | None:
    """Log-probabilities of several samples as one float32 tensor (N, A); None if the method uses none."""
    present = [values for values in arrays if values is not None]
    return _tensor(present, device).float() if present else None
