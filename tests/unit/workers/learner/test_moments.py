"""Moments in 8 bits: what a checkpoint has of them gives bitsandbytes its own codes and scales back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from workers.learner.saving.moments import BLOCK, BlockMoment, block_codes

bitsandbytes = pytest.importorskip("bitsandbytes", reason="make bitsandbytes")
SIZE = 20 * BLOCK + 100


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """State of bitsandbytes' AdamW after some steps; a block of the tensor never had a gradient."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(SIZE))
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=1e-3)
    for _ in range(3):
        parameter.grad = torch.randn(SIZE) * torch.logspace(-9, 0, SIZE)
        parameter.grad[3 * BLOCK : 4 * BLOCK] = 0
        optimizer.step()
    return dict(optimizer.state[parameter])


def saved(state: dict[str, Any], number: int) -> tuple[Tensor, Tensor]:
    """Values and scales, read in pieces that cross blocks."""
    pieces = [(start, min(1000, SIZE - start)) for start in range(0, SIZE, 1000)]
    values, scales = (
        torch.cat([BlockMoment(state, number, of_scales).narrow(0, *piece) for piece in pieces])
        for of_scales in (False, True)
    )
    return values, scales


@pytest.mark.parametrize("number", [1, 2])
def test_values_are_those_of_bitsandbytes(state: dict[str, Any], number: int) -> None:
    values, _ = saved(state, number)
    expected = bitsandbytes.functional.dequantize_blockwise(
        state[f"state{number}"], absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=BLOCK
    )
    torch.testing.assert_close(values, expected, rtol=0, atol=0)
    assert values.abs().max() > 0


@pytest.mark.parametrize("number", [1, 2])
def test_codes_and_scales_come_back(state: dict[str, Any], number: int) -> None:
    codes, absmax = block_codes(*saved(state, number), state[f"qmap{number}"])
    assert (absmax == state[f"absmax{number}"]).all()
    used = saved(state, number)[1] > 0  # where the scale is 0 any code is 0
    assert used.sum() == SIZE - BLOCK
    assert (codes[used] == state[f"state{number}"][used]).all()


@pytest.mark.parametrize("number", [1, 2])
def test_other_blocks_are_rounded_by_their_largest_number(state: dict[str, Any], number: int) -> None:
    values, scales = saved(state, number)
    shifted = slice(50, SIZE)  # each block now has numbers of two
    codes, absmax = block_codes(values[shifted], scales[shifted], state[f"qmap{number}"])
    assert absmax[0] == values[50 : 50 + BLOCK].abs().max()
    again = state[f"qmap{number}"][codes.long()] * absmax.repeat_interleave(BLOCK)[: len(codes)]
    block_of = absmax.repeat_interleave(BLOCK)[: len(codes)]
    assert ((again - values[shifted]).abs() <= 0.02 * block_of).all()


def test_padding_without_a_scale_leaves_a_block_its_own() -> None:
    table = torch.linspace(-1, 1, 256)
    values, scales = torch.zeros(BLOCK), torch.zeros(BLOCK)
    values[:9], scales[:9] = 0.5 * table[200], 0.5
    codes, absmax = block_codes(values, scales, table)
    assert (absmax.tolist(), codes[0].item()) == ([0.5], 200)
