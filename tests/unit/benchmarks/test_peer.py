"""Arithmetic of the comparison with TRL: rates are of totals, and the stages of a step add up to it."""

from __future__ import annotations

import pytest

from benchmarks.common.timed_runs import DEMO
from benchmarks.peer.compare_peers import (
    WORDS,
    PeerFigures,
    PeerStep,
    WorkShape,
    figures_of,
    shape_of,
    shapes_of,
    stage_rows,
)
from demopsd_dist.config import load


def test_rates_are_of_totals() -> None:
    """Two samples/s for a second and one for three are 5 in 4 s, not the mean of the rates."""
    figures = figures_of(
        [PeerStep(2, 20, 0.5, 1.0, {"learn": 0.5}), PeerStep(3, 60, 1.0, 3.0, {"learn": 1.5, "score": 1.0})]
    )
    assert figures == PeerFigures(
        samples_per_s=1.25,
        tokens_per_sample=16.0,
        reward=0.75,
        step_s=2.0,
        fastest_s=1.0,
        slowest_s=3.0,
        stages={"learn": 1.0, "score": 0.5},
    )


def test_stages_add_up_to_the_step() -> None:
    """Stages that overlap or are part of another begin with a dash, and are not added again."""
    own_s = {
        "wait_for_rollouts": 1.0,
        "sample": 0.8,
        "support": 0.1,
        "score": 0.4,
        "learn": 0.3,
        "publish_weights": 0.1,
    }
    trl_s = {"sample": 2.0, "reward": 0.1, "teacher": 0.5, "student": 0.3, "loss": 0.1, "backward": 0.6, "rest": 0.4}
    rows = stage_rows(figures_of([PeerStep(8, 80, 0.5, 1.5, own_s)]), figures_of([PeerStep(8, 80, 0.5, 4.0, trl_s)]))
    *stages, (name, own, trl) = rows
    assert (name, own, trl) == ("step", 1.5, 4.0)
    assert sum(own for name, own, _ in stages if own and not name.startswith("–")) == pytest.approx(1.5)
    assert sum(trl for name, _, trl in stages if trl and name != "learning") == pytest.approx(4.0)


@pytest.mark.parametrize("prompts", [24, 16, 1])
def test_a_shape_divides_the_samples_of_a_step(prompts: int) -> None:
    config = load(DEMO, [*WORDS, f"rollout.prompts_per_step={prompts}"])
    samples = prompts * config.rollout.group_size
    shapes = shapes_of(config)
    assert WorkShape(1, samples) in shapes
    assert {shape.processes for shape in shapes} == {1, 2}
    for shape in shapes:
        assert samples % (shape.processes * shape.micro_batch) == 0, f"TRL cannot cut {samples} samples as {shape}"


def test_a_shape_by_name() -> None:
    assert shape_of("2x16") == WorkShape(processes=2, micro_batch=16)
