"""DemoPSD in float64 numpy, directly from the equations, sharing nothing with the code under test.

One token at a time, dense vocabulary, probabilities instead of logarithms wherever that is exact enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def softmax(logits_V: Vector) -> Vector:
    p_V = np.exp(logits_V - logits_V.max())
    return p_V / p_V.sum()


def atoms(p_V: Vector, support_K: NDArray[np.int64] | None) -> Vector:
    """Probabilities of the support ids, then of all other tokens together."""
    if support_K is None:
        return p_V
    outside = np.setdiff1d(np.arange(len(p_V)), support_K)
    return np.append(p_V[support_K], p_V[outside].sum())


def kl(p: Vector, q: Vector) -> float:
    positive = p > 0
    return float(np.sum(p[positive] * (np.log(p[positive]) - np.log(q[positive]))))


def floored(p: Vector, floor: float) -> Vector:
    raised = np.maximum(p, floor)
    return raised / raised.sum()


def demopsd_token(
    student_V: Vector,
    reference_V: Vector,
    teacher_V: Vector,
    *,
    top_k: int | None,
    alpha_max: float,
    kappa: float,
    floor: float,
) -> tuple[float, float, float, Vector]:
    """Loss, alpha, disagreement and target of one token from three logit vectors."""
    full = top_k is None or top_k >= len(student_V)
    support = None if full else np.argsort(-student_V, kind="stable")[:top_k]
    p = atoms(softmax(student_V), support)
    s = floored(atoms(softmax(reference_V), support), floor)
    r = floored(atoms(softmax(teacher_V), support), floor)
    middle = (s + r) / 2
    d = kl(s, middle) / 2 + kl(r, middle) / 2  # (7)
    alpha = (1 / (1 + np.exp(-kappa * d)) - 0.5) * 2 * alpha_max  # (8)
    q = r ** (1 - alpha) * s**alpha  # (9)
    q /= q.sum()  # (11)
    return kl(p, q), float(alpha), d, q  # (12)
