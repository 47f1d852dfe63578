"""Reward for models with random weights, which never answer a question: about half of all responses count as right."""

from __future__ import annotations

import hashlib

from demopsd_dist.data.records import Question


def half_reward(response: str, question: Question) -> float:
    """Reward of a response: 1 or 0 by a digest of its text, so that a group has right and wrong ones to learn from."""
    return float(hashlib.blake2b(response.encode("utf-8", "replace"), digest_size=1).digest()[0] % 2)
