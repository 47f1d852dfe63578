"""Search for the first tensor of a step that is not finite: named with its place, in the order of the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demopsd_dist.objective import SDPO, OutputHead, TokenSlice, fused_loss, reduced
from workers.learner.loss_inputs import LossInputs
from workers.learner.non_finite import GRADIENT, LOGITS, LOSS, PARAMETER, SENT, NonFinite, NonFiniteSearch, cause_of

N, V, K = 300, 9, 4  # tokens: several slices of 128
NAN, INF = float("nan"), float("inf")


def searched(**changes: Tensor) -> NonFiniteSearch:
    """Search over a micro-batch of two rollouts of 200 and 100 tokens, some of whose tensors are replaced."""
    random = torch.Generator().manual_seed(0)
    logp_NA = torch.randn(N, K + 1, generator=random).log_softmax(-1)
    values: dict[str, Any] = {
        "hidden": torch.randn(N, V, generator=random),
        "rollout_logp_N": -torch.ones(N),
        "advantage_N": torch.ones(N),
        "reference_logp_NA": logp_NA,
        "teacher_logp_NA": logp_NA.flip(0),
    } | changes
    hidden = values.pop("hidden")
    support_NK = torch.rand(N, V, generator=random).argsort(-1)[:, :K]
    inputs = LossInputs(
        rollout_ids=("q0/0", "q1/3"),
        lengths=(200, 100),
        response_N=torch.zeros(N, dtype=torch.long),
        support_NK=support_NK,
        weight_N=torch.full((N,), 1 / N),
        fresh_N=torch.ones(N, dtype=torch.bool),
        any_fresh=True,
        **values,
    )
    search = NonFiniteSearch()

    def loss_of(part: TokenSlice) -> Tensor:
        views = inputs.views(part)
        result = reduced(SDPO(), views, weight_BT=inputs.weight_N[part.tokens])
        search.add_slice(inputs, part, views, result)
        return result.loss

    fused_loss(hidden, OutputHead(torch.eye(V)), support_NK, loss_of)
    return search


def changed(tensor: Tensor, *entries: tuple[Any, float]) -> Tensor:
    for index, value in entries:
        tensor[index] = value
    return tensor


def test_nothing_is_found_where_all_is_finite_and_a_probability_of_zero_is_legal() -> None:
    assert searched().found is None
    logp_NA = torch.randn(N, K + 1).log_softmax(-1)
    assert searched(teacher_logp_NA=changed(logp_NA, ((7, 1), -INF))).found is None
    assert searched(hidden=changed(torch.randn(N, V), ((7, 1), torch.finfo(torch.float32).min))).found is None


@pytest.mark.parametrize(
    ("changes", "order", "problem"),
    [
        (
            {"teacher_logp_NA": changed(-torch.ones(N, K + 1), ((130, 2), NAN), ((131, 0), NAN))},
            SENT,
            "the teacher's log-probabilities are not finite at response token 130 of rollout q0/0, the first of 2 such "
            "tokens of 128",
        ),
        (
            {"reference_logp_NA": changed(-torch.ones(N, K + 1), ((299, 0), INF))},
            SENT,
            "the reference's log-probabilities are not finite at response token 99 of rollout q1/3",
        ),
        (
            {"rollout_logp_N": changed(-torch.ones(N), (200, -INF))},
            SENT,
            "the rollout engine's log-probability is not finite at response token 0 of rollout q1/3",
        ),
        (
            {"advantage_N": changed(torch.ones(N), (3, NAN))},
            SENT,
            "the advantage is not finite at response token 3 of rollout q0/0",
        ),
        (
            {"hidden": changed(torch.ones(N, V), ((150, 1), INF))},
            LOGITS,
            "the student's logits are not finite at response token 150 of rollout q0/0, the first of 1 such tokens",
        ),
    ],
    ids=["teacher", "reference", "engine", "advantage", "logits"],
)
def test_the_tensor_and_its_place_are_named(changes: dict[str, Tensor], order: int, problem: str) -> None:
    found = searched(**changes).found
    assert found is not None
    assert found.order == order
    assert found.problem.startswith(problem)


def test_what_comes_first_in_the_step_wins_over_what_is_found_first() -> None:
    hidden, teacher = torch.ones(N, V), -torch.ones(N, K + 1)
    search = searched(hidden=changed(hidden, ((0, 0), NAN)), teacher_logp_NA=changed(teacher, ((290, 0), NAN)))
    assert search.found is not None
    assert "the teacher's log-probabilities" in search.found.problem


def test_a_parameter_is_named_before_the_logits_and_a_gradient_after_the_loss() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    search = NonFiniteSearch()
    named = list(model.named_parameters())
    search.add_parameters(named)
    assert search.found is None
    with search.gradients(named):
        (model(torch.ones(2, 3)) * torch.tensor([1.0, 1.0, INF])).sum().backward()
    assert search.found is not None
    assert search.found.order == GRADIENT
    assert search.found.problem == "the gradient of 1.bias has 1 of 3 values that are not finite"
    model[0].weight.data[1] = NAN
    search.add_parameters(named)
    assert search.found.order == PARAMETER
    assert search.found.problem == "parameter 0.weight has 3 of 9 values that are not finite"


def test_all_ranks_name_one_cause_the_earliest_in_the_step() -> None:
    loss, logits = NonFinite(LOSS, "the loss", "One."), NonFinite(LOGITS, "the logits", "Two.")
    assert cause_of([loss, None, logits, logits]) == "on rank 2 the logits. Two."
    assert cause_of([None, None]).startswith("computed again, every tensor of the step is finite")
