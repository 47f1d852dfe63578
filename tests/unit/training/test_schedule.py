"""The learning rate of each step: golden numbers, and properties of every schedule."""

from __future__ import annotations

import pytest

from demopsd_dist.config import LearnerConfig, Schedule
from demopsd_dist.training.schedule import learning_rate

STEPS = 12


def rates(schedule: str, warmup_steps: int = 4, fraction: float = 0.25) -> list[float]:
    settings = LearnerConfig(
        learning_rate=8.0,
        warmup_steps=warmup_steps,
        schedule=Schedule(schedule),
        final_learning_rate_fraction=fraction,
    )
    return [learning_rate(settings, step, STEPS) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [8.0] * 8),
        ("linear", [7.25, 6.5, 5.75, 5.0, 4.25, 3.5, 2.75, 2.0]),
        ("cosine", [7.771639, 7.121320, 6.148050, 5.0, 3.851950, 2.878680, 2.228361, 2.0]),
    ],
)
def test_warm_up_then_the_schedule(schedule: str, after: list[float]) -> None:
    assert rates(schedule) == pytest.approx([2.0, 4.0, 6.0, 8.0, *after])


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("warmup_steps", [0, 1, 11, 12, 50])
def test_it_rises_and_falls_once_within_its_bounds(schedule: Schedule, warmup_steps: int) -> None:
    values = rates(schedule.value, warmup_steps)
    turn = min(warmup_steps, STEPS)
    assert values[:turn] == sorted(values[:turn])
    assert values[turn:] == sorted(values[turn:], reverse=True)
    assert 0 < min(values) <= max(values) <= 8.0
    if warmup_steps < STEPS:
        assert values[-1] == pytest.approx(8.0 if schedule is Schedule.constant else 2.0)


def test_a_fraction_of_one_is_constant_and_of_zero_ends_at_nothing() -> None:
    for schedule in ("linear", "cosine"):
        assert rates(schedule, fraction=1.0) == pytest.approx(rates("constant"))
        assert rates(schedule, fraction=0.0)[-1] == pytest.approx(0.0, abs=1e-12)
