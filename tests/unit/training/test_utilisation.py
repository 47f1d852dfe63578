"""Utilisation of the stages against a sum by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from demopsd_dist.config import Precision, load
from demopsd_dist.data.examples import RewardedGroup, reward_group
from demopsd_dist.data.records import BatchSize, ScoredExample, TrainingExample
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.methods import resolve_method
from demopsd_dist.training.run import StageSpeed
from demopsd_dist.training.step_batch import StepBatch
from demopsd_dist.training.step_records import row_tokens, stage_utilisation
from tests.unit.run_record.sample_rows import prompt, rollout
from workers.matrix_peak import matrix_peak_flops

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
PEAKS = {"rollout": 1e6, "teacher": 2e6, "learner": 4e6}
SPEED = StageSpeed(layer_flops=100.0, head_flops=10.0, learn_passes=3.0, peaks=PEAKS)


def a_group() -> RewardedGroup:
    """Two responses of 4 and 6 tokens to a prompt of 5; the longer begins like the shorter."""
    of = prompt("q", 5)
    return reward_group([rollout(of, 0, length=4), rollout(of, 1, length=6)], resolve_reward("answer"))


def a_batch(group: RewardedGroup) -> StepBatch:
    examples = [TrainingExample(one, 1.0, 0.0, np.arange(9, dtype=np.int32) + 50) for one in group.rollouts]
    scored = [ScoredExample(one, np.zeros((one.response_length_tokens, 1), np.int32), None, None) for one in examples]
    return StepBatch([group], BatchSize(10, 2), scored, [], {}, [])


def test_operations_of_each_stage_are_counted() -> None:
    config, batch = load(DEMO), a_batch(a_group())
    stage_s = {"sample": 2.0, "support": 0.5, "score": 1.0, "learn": 4.0, "publish": 1.0}
    found = stage_utilisation(SPEED, config, resolve_method(config).forwards, batch, stage_s)
    merged, privileged = 5 + 6 - 1, 9 + 6 - 1  # the last token of a response predicts nothing
    student = 100 * merged + 10 * 10
    assert found == {
        "perf/sample_utilisation": (100 * 15 + 10 * 10) / (2.0 * 1e6),
        "perf/support_utilisation": student / (0.5 * 4e6),
        "perf/score_utilisation": (student + 100 * privileged + 10 * 10) / (1.0 * 2e6),
        "perf/learn_utilisation": 3 * student / (4.0 * 4e6),
    }


def test_a_stage_without_seconds_peak_or_work_has_none() -> None:
    config, batch = load(DEMO, ["demopsd.support=reference"]), a_batch(a_group())
    forwards = resolve_method(config).forwards
    found = stage_utilisation(SPEED, config, forwards, batch, {"support": 1.0, "score": 1.0})
    assert set(found) == {"perf/score_utilisation"}
    alone = StageSpeed(100.0, 10.0, 3.0, {"learner": 1e6})
    assert stage_utilisation(alone, config, forwards, batch, {"score": 1.0}) == {}


def test_unmerged_rows_compute_a_prompt_for_each_response() -> None:
    examples = a_batch(a_group()).examples
    assert row_tokens(examples, 2048, None) == 10
    assert row_tokens(examples, 0, None) == (5 + 4 - 1) + (5 + 6 - 1)


def test_measuring_a_peak_leaves_the_random_numbers_as_they_are() -> None:
    before = torch.random.get_rng_state()
    assert 1e8 < matrix_peak_flops(torch.device("cpu"), Precision.float32) < 1e13
    assert torch.equal(torch.random.get_rng_state(), before)
