"""The arithmetic of the comparison with TRL: rates are of totals, and the stages of a step add up to it."""

from __future__ import annotations

import pytest

from benchmarks.peer.compare_peers import SHAPES, WORDS, PeerFigures, PeerStep, figures, stage_rows
from benchmarks.common.timed_runs import DEMO
from demopsd_dist.config import load


def test_figures_are_of_totals() -> None:
    """Two samples/s for a second and one for three are 5 in 4 s, not the mean of the rates."""
    found = figures(
        [PeerStep(2, 20, 0.5, 1.0, {"learn": 0.5}), PeerStep(3, 60, 1.0, 3.0, {"learn": 1.5, "score": 1.0})]
    )
    assert found == PeerFigures(
        samples_per_s=1.25,
        tokens_per_sample=16.0,
        reward=0.75,
        step_s=2.0,
        fastest_s=1.0,
        slowest_s=3.0,
        stages={"learn": 1.0, "score": 0.5},
    )


def test_stages_add_up_to_the_step() -> None:
    """What overlaps or is part of another is told by its dash, and is not added again."""
    mine = {"wait_for_rollouts": 1.0, "sample": 0.8, "support": 0.1, "score": 0.4, "learn": 0.3, "publish_weights": 0.1}
    theirs = {"sample": 2.0, "reward": 0.1, "teacher": 0.5, "student": 0.3, "loss": 0.1, "backward": 0.6, "rest": 0.4}
    rows = stage_rows(figures([PeerStep(8, 80, 0.5, 1.5, mine)]), figures([PeerStep(8, 80, 0.5, 4.0, theirs)]))
    *parts, (name, here, there) = rows
    assert (name, here, there) == ("step", 1.5, 4.0)
    assert sum(part for name, part, _ in parts if part and not name.startswith("–")) == pytest.approx(1.5)
    assert sum(part for name, _, part in parts if part and name != "learning") == pytest.approx(4.0)


def test_the_settings_hold_for_both_sides() -> None:
    config = load(DEMO, WORDS)
    samples = config.rollout.prompts_per_step * config.rollout.group_size
    for shape in SHAPES:
        assert samples % (shape.processes * shape.micro_batch) == 0, f"TRL cannot cut {samples} samples as {shape}"
