"""Leakage of the privileged context into the target: measures without an extra forward, and mutual information.

p student, s reference, r teacher, q target; Delta = log r - log s; all over the same atoms. Entropies and divergences
over top-k atoms and a tail bucket are at most those over the vocabulary (data processing).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from demopsd_dist.objective.divergence import atom_entropy, generalised_kl

TOLERANCE_NATS = 1e-6  # entropies closer than this count as equal


def mean_under(weights_logp_BTA: Tensor, values_BTA: Tensor) -> Tensor:
    """Mean of the values under the distribution of the weights, (B, T)."""
    return (weights_logp_BTA.exp() * values_BTA).sum(-1)


def covariance(weights_logp_BTA: Tensor, x_BTA: Tensor, y_BTA: Tensor) -> Tensor:
    """Covariance of x and y under the weights w, (B, T)."""
    centred_BTA = x_BTA - mean_under(weights_logp_BTA, x_BTA).unsqueeze(-1)
    return mean_under(weights_logp_BTA, centred_BTA * y_BTA)


@torch.no_grad()
def leakage_terms(
    reference_BTA: Tensor, teacher_BTA: Tensor, target_BTA: Tensor, alpha_BT: Tensor
) -> dict[str, Tensor]:
    """Leakage measures of each token, (B, T).

    * `teacher_nats`, `target_nats`: KL(r|s) and KL(q|s). The second is at most the first at every token; both bound
      the information about the context from above.
    * `r_leak`, `r_demo`: |Delta|^2 and (1 - alpha)^2 |Delta|^2, as the paper's theorem 1 has them.
    * `teacher_variance`, `target_variance`: their centred form, Var_s(log r - log s) and Var_s(log q - log s), for
      which the theorem is exact: log q - log s = (1 - alpha) Delta - log Z, and log Z drops out.
    """
    delta_BTA = teacher_BTA - reference_BTA
    keep_BT = (1.0 - alpha_BT) ** 2
    r_leak_BT = delta_BTA.square().sum(-1)
    variance_BT = covariance(reference_BTA, delta_BTA, delta_BTA)
    return {
        "leakage/teacher_nats": generalised_kl(teacher_BTA, reference_BTA),
        "leakage/target_nats": generalised_kl(target_BTA, reference_BTA),
        "leakage/r_leak": r_leak_BT,
        "leakage/r_demo": keep_BT * r_leak_BT,
        "leakage/teacher_variance": variance_BT,
        "leakage/target_variance": keep_BT * variance_BT,
    }


@torch.no_grad()
def ordering_terms(reference_BTA: Tensor, teacher_BTA: Tensor, target_BTA: Tensor) -> dict[str, Tensor]:
    """Entropies of each token, (B, T), and whether theorem 2 holds there.

    H(s) >= H(q) >= H(r), if Delta and log s do not vary against each other.
    """
    entropies = [atom_entropy(x) for x in (reference_BTA, target_BTA, teacher_BTA)]
    reference_BT, target_BT, teacher_BT = entropies
    below_BT = target_BT < teacher_BT - TOLERANCE_NATS
    return {
        "entropy/reference_nats": reference_BT,
        "entropy/target_nats": target_BT,
        "entropy/teacher_nats": teacher_BT,
        "entropy/order_violated_fraction": below_BT | (reference_BT < target_BT - TOLERANCE_NATS),
        "entropy/target_below_teacher_fraction": below_BT,
        "entropy/covariance_negative_fraction": covariance(teacher_BTA, teacher_BTA - reference_BTA, reference_BTA) < 0,
    }


@torch.no_grad()
def support_terms(student_BTA: Tensor, teacher_BTA: Tensor | None, has_tail: bool) -> dict[str, Tensor]:
    """Student's mass on its support, teacher's mass outside it, and entropy of the atoms; (B, T) each."""
    zero_BT = torch.zeros_like(student_BTA[..., 0])

    def tail(logp_BTA: Tensor) -> Tensor:
        return logp_BTA[..., -1].exp() if has_tail else zero_BT

    terms = {"support/student_mass": 1.0 - tail(student_BTA), "entropy/student_atoms_nats": atom_entropy(student_BTA)}
    return terms if teacher_BTA is None else terms | {"support/teacher_tail_mass": tail(teacher_BTA)}


@torch.no_grad()
def mutual_information(contexts_logp_MTA: Tensor) -> Tensor:
    """Mutual information of the next token and the choice of one of M contexts, (T,), nats: mean_i KL(q_i | mean q).

    Exact for the uniform choice among these M. As an estimate for the whole population of contexts it is low: it grows
    with M and cannot exceed ln M. Over top-k atoms and a tail it is a lower bound. Report M with it.

    Raises:
        ValueError: fewer than 2 contexts.
    """
    if contexts_logp_MTA.shape[0] < 2:
        raise ValueError(
            f"mutual information over {contexts_logp_MTA.shape[0]} context is not defined; give at least 2."
        )
    mean_TA = contexts_logp_MTA.logsumexp(0) - math.log(len(contexts_logp_MTA))
    return generalised_kl(contexts_logp_MTA, mean_TA.expand_as(contexts_logp_MTA)).mean(0)
