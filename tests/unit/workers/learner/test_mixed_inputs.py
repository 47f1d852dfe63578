"""Tensors of a micro-batch of a mixed loss: weights of the terms by token, values for responses without a teacher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from demopsd_dist.data.records import BatchSize, ScoredExample, TermWeights
from tests.unit.run_record.sample_rows import scored
from workers.learner.loss_inputs import LossInputs


def inputs_of(items: list[ScoredExample]) -> LossInputs:
    return LossInputs.from_examples(
        items, aggregation="token_mean", size=BatchSize(9, 3), max_tokens=9, version=0, device=torch.device("cpu")
    )


def with_terms(item: ScoredExample, policy: float, distillation: float) -> ScoredExample:
    return replace(item, example=replace(item.example, terms=TermWeights(policy, distillation)))


def test_each_token_has_the_weights_of_its_response_and_some_teacher() -> None:
    distilled = with_terms(scored("a", 3, 2), 0.25, 0.75)
    alone = replace(with_terms(scored("b", 3, 3), 1.0, 0.0), teacher_logp_TA=None)
    inputs = inputs_of([distilled, alone])
    assert inputs.policy_weight_N is not None
    assert inputs.distillation_weight_N is not None
    assert inputs.policy_weight_N.tolist() == [0.25, 0.25, 1.0, 1.0, 1.0]
    assert inputs.distillation_weight_N.tolist() == [0.75, 0.75, 0.0, 0.0, 0.0]
    assert inputs.teacher_logp_NA is not None
    assert inputs.teacher_logp_NA[2:].exp().sum(-1).tolist() == pytest.approx([1.0] * 3)


def test_without_any_teacher_in_the_micro_batch_there_are_values_too() -> None:
    inputs = inputs_of([replace(with_terms(scored("b", 3, 3), 1.0, 0.0), teacher_logp_TA=None)])
    assert inputs.teacher_logp_NA is not None
    assert np.isfinite(inputs.teacher_logp_NA.numpy()).all()


def test_other_methods_have_no_weights() -> None:
    inputs = inputs_of([scored("a", 3, 2)])
    assert inputs.policy_weight_N is None
    assert inputs.distillation_weight_N is None
