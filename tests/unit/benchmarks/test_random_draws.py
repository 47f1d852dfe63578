"""Every fused loss against float64 on a few hundred draws of the benchmark."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.objective import random_draws
from benchmarks.objective.random_draws import METHODS, RANGES, compared, drawn, report, run

DRAWS = 240
WORST_GRADIENT_ERROR = 3e-5


def test_all_draws_are_finite_close_to_float64_and_not_below_zero() -> None:
    rows = run(DRAWS, seed=7)
    assert {(row["method"], row["range"]) for row in rows} == {(method, span) for method in METHODS for span in RANGES}
    for row in rows:
        assert row["draws"] == DRAWS / len(METHODS) / len(RANGES)
        assert row["not_finite"] == 0, row
        assert row["negative"] == 0, row
        assert row["loss_error"] < 1e-5, row
        assert row["gradient_error"] < WORST_GRADIENT_ERROR, row
    text = "\n".join(report(rows, 7))
    assert "**0 draws with a loss" in text
    assert text.count("\n| ") == 2 + len(RANGES) + len(METHODS)


@pytest.mark.parametrize("span", RANGES)
def test_draws_have_the_range_that_they_are_named_for(span: str) -> None:
    found = [drawn("sdpo, jsd", span, seed).case for seed in range(60)]
    largest = max(
        float(logits.nan_to_num(neginf=0.0).abs().max())
        for case in found
        for logits in (case.student_NV, case.teacher_NV)
    )
    assert 0.9 * RANGES[span] < largest <= 1.001 * RANGES[span]
    zeros = [bool(torch.isneginf(torch.cat([case.student_NV, case.teacher_NV])).any()) for case in found]
    assert any(zeros) == ("-inf" in span)
    assert not any(bool(torch.isneginf(logits).all(-1).any()) for case in found for logits in (case.student_NV,))
    assert {case.support_NK is None for case in found} == {True, False}


def test_an_error_in_a_loss_is_seen() -> None:
    """The values at another temperature are far away."""
    draw = drawn("sdpo, jsd", "within 64", 1)
    assert compared(draw).gradient_error < WORST_GRADIENT_ERROR
    scaled = dataclasses.replace(draw, case=dataclasses.replace(draw.case, temperature=2 * draw.case.temperature))
    losses, gradient, finite = random_draws.fused_values(scaled)
    exact, exact_gradient = random_draws.exact_values(draw)
    assert finite
    assert (losses - exact).abs().max() > 1e-3
    assert (gradient - exact_gradient).abs().max() > 1e-3
