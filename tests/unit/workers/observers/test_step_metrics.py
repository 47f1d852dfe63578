"""Step metrics and the observers' interface: values over slices, and a loss that no observer changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demopsd_dist.data.records import BatchSize, ScoredExample
from demopsd_dist.objective import (
    DemoPSD,
    Loss,
    OutputHead,
    TokenSlice,
    TokenViews,
    entropy,
    fused_loss,
    reduced,
    top_k_support,
)
from tests.unit.run_record import sample_rows
from workers.learner.loss_inputs import LossInputs
from workers.learner.observers.observer import Observer
from workers.learner.observers.step_metrics import StepMetrics

TOKENS, VOCABULARY, TOP_K = 30, 60, 3


class SliceCounter:
    """Observer that knows nothing of the mathematics: it counts slices."""

    def __init__(self) -> None:
        self.count = 0

    def add_slice(self, inputs: LossInputs, part: TokenSlice, views: TokenViews, result: Loss) -> None:
        self.count += 1


def observe(
    observers: list[Observer], version: int, slice_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Loss of a micro-batch with observers, its logits (N, V), and the rollout engine's log-probabilities (N,)."""
    random = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(TOKENS, VOCABULARY, generator=random)
    support_NK = top_k_support(logits_NV, TOP_K)
    assert support_NK is not None
    values_NA = torch.randn(TOKENS, TOP_K + 1, generator=random).log_softmax(-1).numpy()
    example = sample_rows.scored("q", 4, TOKENS).example
    item = ScoredExample(example, support_NK.int().numpy(), values_NA, values_NA[:, ::-1].copy())
    inputs = LossInputs.from_examples(
        [item],
        aggregation="token_mean",
        size=BatchSize(TOKENS, 1),
        max_tokens=TOKENS,
        version=version,
        device=torch.device("cpu"),
    )

    def loss_of(part: TokenSlice) -> torch.Tensor:
        views = inputs.views(part)
        result = reduced(DemoPSD(), views, weight_BT=inputs.weight_N[part.tokens], token_count=TOKENS)
        for observer in observers:
            observer.add_slice(inputs, part, views, result)
        return result.loss

    identity = OutputHead(torch.eye(VOCABULARY))
    loss = fused_loss(logits_NV.requires_grad_(), identity, inputs.support_NK, loss_of, slice_tokens=slice_tokens)
    return loss.detach(), logits_NV.detach(), example.rollout.logp_T


@pytest.mark.parametrize("slice_tokens", [7, TOKENS])
def test_metrics_add_up_over_slices(slice_tokens: int) -> None:
    """The mismatch counts tokens of the current weights, which are version 0 in these rollouts."""
    metrics, counter = StepMetrics(TOKENS), SliceCounter()
    loss, logits_NV, rollout_logp_N = observe([metrics, counter], 0, slice_tokens)
    report = metrics.report()
    assert counter.count == -(-TOKENS // slice_tokens)
    assert report.sums["learner/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert report.sums["policy/entropy_nats"] == pytest.approx(float(entropy(logits_NV).mean()), rel=1e-5)
    sampled = torch.arange(TOKENS) + 20  # the tokens of `sample_rows.rollout`
    logp_N = logits_NV.log_softmax(-1).gather(-1, sampled[:, None])[:, 0].numpy()
    difference_N = np.abs(logp_N - rollout_logp_N)
    assert report.maxima["mismatch/logp_diff_max"] == pytest.approx(float(difference_N.max()), rel=1e-5)
    np.testing.assert_allclose(report.distributions["mismatch/logp_diff"], difference_N, rtol=1e-5)
    assert len(report.distributions["demopsd/alpha"]) == TOKENS


def test_tokens_of_older_weights_are_no_mismatch() -> None:
    metrics = StepMetrics(TOKENS)
    observe([metrics], 1, TOKENS)
    assert "mismatch/logp_diff_max" not in metrics.report().maxima
    assert "mismatch/logp_diff" not in metrics.report().distributions


def test_an_observer_changes_no_loss() -> None:
    assert observe([], 0, 7)[0] == observe([StepMetrics(TOKENS), SliceCounter()], 0, 7)[0]
