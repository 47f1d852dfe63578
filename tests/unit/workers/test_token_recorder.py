"""What the learners tell of single tokens is what the loss saw there, however the batch is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from demopsd_dist.data.records import ScoredExample, TokenRecord
from demopsd_dist.objective import (
    GRPO,
    SDPO,
    DemoPSD,
    Objective,
    TokenSlice,
    TokenViews,
    barycenter,
    candidates,
    coarsen,
    disagreement,
    entropy,
    floored,
    fused_loss,
    gate,
    reduced,
    target_of,
)
from tests.unit.run_record import sample_rows
from workers.learner.observers.token_recorder import TokenRecorder

VOCABULARY, TOP_K, HIDDEN = 40, 6, 8
LENGTHS = [5, 300, 7]  # over several slices of 128
CPU = torch.device("cpu")


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-4)


def test_candidates_are_the_likeliest_to_anybody_and_never_the_tail() -> None:
    one = torch.tensor([[0.5, 0.1, 0.05, 0.35]]).log()
    other = torch.tensor([[0.1, 0.05, 0.45, 0.4]]).log()
    assert candidates([one, other], 2, has_tail=True).tolist() == [[0, 2]]
    assert candidates([one, other], 9, has_tail=True).tolist() == [[0, 2, 1]]
    assert candidates([one, other], 9, has_tail=False).tolist() == [[0, 2, 3, 1]]


Whole = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def told(
    method: Objective, count: int, max_tokens: int, names: set[str], most_values: int = 10_000
) -> tuple[dict[str, TokenRecord], dict[str, Whole]]:
    """Tables of a micro-batch of three responses; of each the student's logits, support, reference and teacher."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    hidden_NH, head_VH = torch.randn(total, HIDDEN), torch.randn(VOCABULARY, HIDDEN).requires_grad_()
    student_NV = hidden_NH @ head_VH.detach().T
    support_NK = student_NV.topk(TOP_K).indices
    reference_NA, teacher_NA = (coarsen(torch.randn(total, VOCABULARY), support_NK) for _ in range(2))
    scored = [sample_rows.scored(f"q{i}", 3, length) for i, length in enumerate(LENGTHS)]
    assert all(isinstance(item, ScoredExample) for item in scored)
    token_recorder = TokenRecorder(
        scored, frozenset(names), method, count=count, max_tokens=max_tokens, device=CPU, most_values=most_values
    )

    def loss_of(part: TokenSlice) -> torch.Tensor:
        views = TokenViews(part.student_logp_NA, reference_NA[part.tokens], teacher_NA[part.tokens])
        found = reduced(method, views, token_count=total)
        token_recorder.see(part, views, found, part.entropy(), support_NK)
        return found.loss

    fused_loss(hidden_NH, head_VH, support_NK, loss_of)
    cuts = torch.arange(total).split(LENGTHS)
    whole = {f"q{i}#0": (student_NV[at], support_NK[at], reference_NA[at], teacher_NA[at]) for i, at in enumerate(cuts)}
    return token_recorder.tables(), whole


@pytest.mark.parametrize("most_values", [1, 10_000])
def test_tables_are_what_the_loss_saw(most_values: int) -> None:
    """Whether candidates are taken slice by slice or at once."""
    method = DemoPSD()
    tables, whole = told(method, 4, 290, {"q0#0", "q1#0", "another#3"}, most_values)
    assert {name: len(table.entropy_T) for name, table in tables.items()} == {"q0#0": 5, "q1#0": 290}
    for name, table in tables.items():
        student_TV, support_TK, reference_TA, teacher_TA = (part[:290] for part in whole[name])
        student_TA = coarsen(student_TV, support_TK)
        s, r = floored(reference_TA, method.floor), floored(teacher_TA, method.floor)
        d = disagreement(s, r)
        alpha = gate(d, method.alpha_max, method.gate_sensitivity)
        close(table.entropy_T, entropy(student_TV))
        close(table.distributions["demopsd/disagreement_nats"], d)
        close(table.distributions["demopsd/alpha"], alpha)
        place = candidates([student_TA, reference_TA, teacher_TA], 4, has_tail=True)
        assert table.candidate_TC.tolist() == support_TK.gather(-1, place).tolist()
        for found, logp in (
            (table.student_logp_TC, student_TA),
            (table.reference_logp_TC, reference_TA),
            (table.teacher_logp_TC, teacher_TA),
            (table.target_logp_TC, barycenter(s, r, alpha)),
        ):
            assert found is not None
            close(found, logp.gather(-1, place))


def test_nothing_is_told_where_nothing_is_asked() -> None:
    assert told(DemoPSD(), 4, 10, set())[0] == {}


@pytest.mark.parametrize(("method", "has_target"), [(SDPO(), True), (GRPO(), False)])
def test_a_method_without_barycenter_says_what_it_takes_the_student_to(method, has_target: bool) -> None:
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
