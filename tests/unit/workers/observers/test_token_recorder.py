"""Token records hold the values that the loss had at each token, however the batch is cut into slices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from demopsd_dist.data.records import BatchSize, ScoredExample, TermWeights, TokenRecord
from demopsd_dist.objective import (
    GRPO,
    SDPO,
    DemoPSD,
    Mixed,
    Objective,
    OutputHead,
    TokenSlice,
    TokenViews,
    barycenter,
    candidate_indices,
    coarsen,
    disagreement,
    entropy,
    floored,
    fused_loss,
    reduced,
    tanh_gate,
    target_of,
)
from tests.unit.run_record import sample_rows
from workers.learner.loss_inputs import LossInputs
from workers.learner.observers.token_recorder import TokenRecorder

VOCABULARY, TOP_K, HIDDEN = 400, 6, 8
MICRO_BATCHES = ({"q0": 5, "q1": 300}, {"q2": 7})  # response tokens by prompt; 300 are several slices of 128
CPU = torch.device("cpu")

Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def close(actual: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5, rtol=1e-4)


def test_candidates_are_the_likeliest_of_any_view_and_never_the_tail() -> None:
    one = torch.tensor([[0.5, 0.1, 0.05, 0.35]]).log()
    other = torch.tensor([[0.1, 0.05, 0.45, 0.4]]).log()
    assert candidate_indices([one, other], 2, has_tail=True).tolist() == [[0, 2]]
    assert candidate_indices([one, other], 9, has_tail=True).tolist() == [[0, 2, 1]]
    assert candidate_indices([one, other], 9, has_tail=False).tolist() == [[0, 2, 3, 1]]


def run_micro_batch(
    lengths: dict[str, int], method: Objective, recorder: TokenRecorder, random: torch.Generator
) -> dict[str, Logits]:
    """Observe the loss of one micro-batch; each rollout's student logits, support, reference and teacher values."""
    total = sum(lengths.values())
    hidden_NH = torch.randn(total, HIDDEN, generator=random)
    head_VH = torch.randn(VOCABULARY, HIDDEN, generator=random).requires_grad_()
    student_NV = hidden_NH @ head_VH.detach().T
    support_NK = student_NV.topk(TOP_K).indices
    reference_NA, teacher_NA = (coarsen(torch.randn(total, VOCABULARY, generator=random), support_NK) for _ in range(2))
    cuts = torch.arange(total).split(list(lengths.values()))
    scored = [
        ScoredExample(
            sample_rows.scored(name, 3, len(rows)).example,
            support_NK[rows].int().numpy(),
            reference_NA[rows].numpy(),
            teacher_NA[rows].numpy(),
        )
        for name, rows in zip(lengths, cuts, strict=True)
    ]
    inputs = LossInputs.from_examples(
        scored, aggregation="token_mean", size=BatchSize(total, len(scored)), max_tokens=300, version=0, device=CPU
    )

    def loss_of(part: TokenSlice) -> torch.Tensor:
        views = inputs.views(part)
        result = reduced(method, views, token_count=total)
        recorder.add_slice(inputs, part, views, result)
        return result.loss

    fused_loss(hidden_NH, OutputHead(head_VH), inputs.support_NK, loss_of)
    return {
        f"{name}#0": (student_NV[rows], support_NK[rows], reference_NA[rows], teacher_NA[rows])
        for name, rows in zip(lengths, cuts, strict=True)
    }


def record_tokens(
    method: Objective, candidate_count: int, max_tokens: int, record_ids: set[str], max_buffered_values: int = 10_000
) -> tuple[dict[str, TokenRecord], dict[str, Logits]]:
    """Token records of a step of two micro-batches, and the tensors that went into its loss."""
    recorder = TokenRecorder(
        frozenset(record_ids),
        method,
        candidate_count=candidate_count,
        max_tokens=max_tokens,
        max_buffered_values=max_buffered_values,
    )
    random = torch.Generator().manual_seed(0)
    logits: dict[str, Logits] = {}
    for lengths in MICRO_BATCHES:
        logits |= run_micro_batch(lengths, method, recorder, random)
    return recorder.token_records(), logits


@pytest.mark.parametrize("max_buffered_values", [1, 10_000])
def test_records_hold_the_values_of_the_loss(max_buffered_values: int) -> None:
    """The same if candidates are chosen slice by slice or once a micro-batch."""
    method = DemoPSD()
    record_ids = {"q0#0", "q1#0", "q2#0", "another#3"}
    records, logits = record_tokens(method, 4, 290, record_ids, max_buffered_values)
    assert {name: len(record.entropy_T) for name, record in records.items()} == {"q0#0": 5, "q1#0": 290, "q2#0": 7}
    for name, record in records.items():
        student_TV, support_TK, reference_TA, teacher_TA = (values[:290] for values in logits[name])
        student_TA = coarsen(student_TV, support_TK)
        s, r = floored(reference_TA, method.floor), floored(teacher_TA, method.floor)
        d = disagreement(s, r)
        alpha = tanh_gate(d, method.alpha_max, method.gate_sensitivity)
        close(record.entropy_T, entropy(student_TV))
        close(record.distributions["demopsd/disagreement_nats"], d)
        close(record.distributions["demopsd/alpha"], alpha)
        index = candidate_indices([student_TA, reference_TA, teacher_TA], 4, has_tail=True)
        assert record.candidate_TC.tolist() == support_TK.gather(-1, index).tolist()
        assert record.candidate_TC.shape == (len(record.entropy_T), 4)
        for recorded, logp in (
            (record.student_logp_TC, student_TA),
            (record.reference_logp_TC, reference_TA),
            (record.teacher_logp_TC, teacher_TA),
            (record.target_logp_TC, barycenter(s, r, alpha)),
        ):
            assert recorded is not None
            close(recorded, logp.gather(-1, index))


def test_nothing_is_recorded_without_record_ids() -> None:
    assert record_tokens(DemoPSD(), 4, 10, set())[0] == {}


@pytest.mark.parametrize(("method", "has_target"), [(SDPO(), True), (GRPO(), False)])
def test_target_of_a_method_without_barycenter_is_its_teacher(method, has_target: bool) -> None:
    logp = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
    views = TokenViews(logp.flip(0), None, logp)
    target = target_of(method, views)
    assert (target is not None) == has_target
    if target is not None:
        assert torch.equal(target, logp)


def test_a_live_reference_is_the_student() -> None:
    student, teacher = torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.2, 0.8]]).log()
    target = target_of(DemoPSD(alpha_max=1.0, gate="constant"), TokenViews(student, None, teacher))
    assert target is not None
    assert math.isclose(float(target.exp()[0, 0]), 0.7, abs_tol=1e-6)


def test_a_response_that_a_mixed_loss_does_not_distil_has_no_teacher_in_its_record() -> None:
    generator = torch.Generator().manual_seed(1)
    terms = {"a": TermWeights(0.5, 0.5), "b": TermWeights(1.0, 0.0)}
    items = []
    for name, weights in terms.items():
        support_TK = np.tile(np.arange(TOP_K, dtype=np.int32), (4, 1))
        example = replace(sample_rows.scored(name, 3, 4).example, terms=weights)
        views = [torch.randn(4, TOP_K + 1, generator=generator).log_softmax(-1).numpy() for _ in range(2)]
        items.append(ScoredExample(example, support_TK, views[0], views[1] if weights.distillation else None))
    inputs = LossInputs.from_examples(
        items, aggregation="token_mean", size=BatchSize(8, 2), max_tokens=9, version=0, device=CPU
    )
    method = Mixed(GRPO(), DemoPSD())
    recorder = TokenRecorder(frozenset({"a#0", "b#0"}), method, candidate_count=3, max_tokens=9)

    def loss_of(part: TokenSlice) -> torch.Tensor:
        views = inputs.views(part)
        result = reduced(method, views, token_count=8)
        recorder.add_slice(inputs, part, views, result)
        return result.loss

    hidden_NH = torch.randn(8, HIDDEN, generator=generator).requires_grad_()
    head_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    fused_loss(hidden_NH, OutputHead(head_VH), inputs.support_NK, loss_of)
    records = recorder.token_records()
    assert records["a#0"].teacher_logp_TC is not None
    assert records["a#0"].distributions["demopsd/alpha"].max() > 0
    assert records["b#0"].teacher_logp_TC is None
    assert records["b#0"].target_logp_TC is None
    assert records["b#0"].distributions == {}
    assert records["b#0"].student_logp_TC.shape == (4, 3)
