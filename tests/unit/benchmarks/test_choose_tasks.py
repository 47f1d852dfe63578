"""The rule that chooses tasks for a small model, and the list of tasks that it is applied to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.tasks.choose_tasks import CANDIDATES, VALIDATION_SEED, TaskAccuracy, source_of
from demopsd_dist.data.sources.gym_tasks import gym_tasks

ROW = TaskAccuracy("gcd", 24, 0.3, 0.7, 0.5, 20.0, 0.0, 1.0)


def test_a_task_is_suitable_between_the_bounds_and_with_the_lift() -> None:
    assert ROW.is_suitable
    assert replace(ROW, alone=0.2, with_solution=0.5).is_suitable
    for alone, with_solution in ((0.19, 0.7), (0.51, 0.9), (0.3, 0.59)):
        assert not replace(ROW, alone=alone, with_solution=with_solution).is_suitable


def test_every_candidate_is_a_task_with_settings_that_it_has() -> None:
    pytest.importorskip("reasoning_gym")
    for spec in CANDIDATES:
        (task,) = gym_tasks(source_of(spec, f"seed={VALIDATION_SEED}"), "train")
        assert spec.startswith(task.name)
    assert len(set(CANDIDATES)) == len(CANDIDATES)
