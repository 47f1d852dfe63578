"""Sums of a buffer's words that change with every word: a digest that a GPU computes where the bytes lie.

Each word of 64 bits is multiplied by an odd factor of its position, modulo 2^64, and the products are added up; once
with each of two series of factors. An odd factor has an inverse, so a change of one word always changes both sums;
words that have moved change them too, as the factors differ. As with XXH3, which a processor computes faster, this is
no protection from an attacker.
"""

from __future__ import annotations

import torch

WORD_BYTES = 8
CHUNK_WORDS = 1 << 20
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
MASK = (1 << 64) - 1


def word_sums(data: torch.Tensor) -> list[int]:
    """Both sums of a tensor of bytes, whose size is a multiple of 8 bytes. Computed on its device."""
    words_N = data.view(torch.int64)
    factors = [_factors(multiplier, min(CHUNK_WORDS, len(words_N)), data.device) for multiplier in MULTIPLIERS]
    chunks = words_N.split(CHUNK_WORDS)
    sums = torch.stack([(chunk * of_chunk[: len(chunk)]).sum() for of_chunk in factors for chunk in chunks]).tolist()
    totals = []
    for number, multiplier in enumerate(MULTIPLIERS):
        total = 0
        for chunk_sum in sums[number * len(chunks) : (number + 1) * len(chunks)]:
            total = (total * multiplier + chunk_sum) & MASK
        totals.append(total)
    return totals


def _factors(multiplier: int, count: int, device: torch.device) -> torch.Tensor:
    """Odd factors of `count` positions: a mixed counter."""
    signed = multiplier - (1 << 64) if multiplier >> 63 else multiplier
    mixed_N = torch.arange(1, count + 1, device=device, dtype=torch.int64) * signed
    mixed_N = (mixed_N ^ (mixed_N >> 29)) * signed
    return (mixed_N ^ (mixed_N >> 32)) | 1
