"""The collapse monitor reports a metric that stays outside its band, with its value, band and steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config import AlarmAction, AlarmConfig, load
from demopsd_dist.training.collapse import METRICS, CollapseMonitor, CollapseVerdict, repeated_fraction
from demopsd_dist.util.errors import CollapseError, ConfigError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
ENTROPY = METRICS["entropy_nats"]
HEALTHY = {
    "policy/entropy_nats": 0.147,
    "rollout/response_tokens_mean": 20.0,
    "rollout/repeated_fraction": 0.01,
    "rollout/truncated_fraction": 0.2,
    "learner/grad_norm": 1.4,
    "mismatch/logp_diff_max": 1e-5,
    "rollout/reward_mean": 0.3,
}


def verdicts(settings: AlarmConfig, entropies: list[float | None]) -> list[int]:
    """Steps after which there is a verdict; None is a step without the metric."""
    alarm = CollapseMonitor(settings)
    figures = [HEALTHY if value is None else {**HEALTHY, ENTROPY: value} for value in entropies]
    for index, value in enumerate(entropies):
        if value is None:
            figures[index] = {name: figure for name, figure in HEALTHY.items() if name != ENTROPY}
    return [step for step, metrics in enumerate(figures, start=1) if alarm.check(step, metrics) is not None]


@pytest.mark.parametrize(
    ("entropies", "reported"),
    [
        ([0.1, 0.1, 0.1, 0.1], []),
        ([0.1, 0.001, 0.001, 0.1, 0.001, 0.001], []),
        ([0.001, 0.001, 0.001], [3]),
        ([0.001] * 7, [3, 6]),
        ([0.001, None, 0.001, 0.001], [4]),
        ([float("nan")] * 3, [3]),
        ([float("inf")] * 3, []),
        ([0.005] * 3, []),
    ],
    ids=["inside", "never three in a row", "three", "again after three more", "one without", "nan", "open end", "edge"],
)
def test_a_verdict_follows_after_steps_consecutive_steps_outside(
    entropies: list[float | None], reported: list[int]
) -> None:
    assert verdicts(AlarmConfig(), entropies) == reported


@pytest.mark.parametrize(
    ("tokens", "fraction"),
    [
        ([], 0.0),
        ([1, 1, 1], 0.0),
        ([1, 1, 1, 1], 0.0),
        ([1] * 13, 0.9),
        (list(range(60)), 0.0),
        ([*range(10)] * 6, 47 / 57),
        ([1, 2, 3, 4, 9, 1, 2, 3, 4], 1 / 6),
    ],
)
def test_repeated_runs_of_tokens(tokens: list[int], fraction: float) -> None:
    assert repeated_fraction(np.asarray(tokens, dtype=np.int32)) == pytest.approx(fraction)


def test_responses_that_go_round_in_circles_are_reported() -> None:
    """The mean is that of responses of which nearly all repeat ten tokens."""
    alarm = CollapseMonitor(AlarmConfig(after_steps=1))
    assert alarm.check(1, {**HEALTHY, "rollout/repeated_fraction": 0.59}) is None
    verdict = alarm.check(2, {**HEALTHY, "rollout/repeated_fraction": 47 / 57})
    assert verdict is not None
    assert "rollout/repeated_fraction=0.8246 is above" in verdict.message


def test_responses_that_never_end_are_reported() -> None:
    alarm = CollapseMonitor(AlarmConfig(after_steps=1))
    assert alarm.check(1, {**HEALTHY, "rollout/truncated_fraction": 0.9}) is None
    verdict = alarm.check(2, {**HEALTHY, "rollout/truncated_fraction": 0.96})
    assert verdict is not None
    assert "rollout/truncated_fraction=0.96 is above alarm.truncated_fraction=[null, 0.9]" in verdict.message


def test_the_message_names_metric_value_band_and_steps() -> None:
    alarm = CollapseMonitor(AlarmConfig(after_steps=2, action=AlarmAction.stop, reward=[0.1, 0.9]))
    assert alarm.check(11, {**HEALTHY, ENTROPY: 0.004, "rollout/reward_mean": 0.95}) is None
    verdict = alarm.check(12, {**HEALTHY, ENTROPY: 0.00012345, "rollout/reward_mean": 1.0, "learner/grad_norm": 1e9})
    assert verdict == CollapseVerdict(
        AlarmAction.stop,
        "alarm after step 12: policy/entropy_nats=0.0001234 is below alarm.entropy_nats=[0.005, null], and has been "
        "out of it for 2 steps, from step 11 on; rollout/reward_mean=1 is above alarm.reward=[0.1, 0.9], and has been "
        "out of it for 2 steps, from step 11 on. If that is healthy here, widen the band or set it to null.",
        since=11,
    )


def test_rollbacks_are_counted_and_limited() -> None:
    settings = AlarmConfig(
        after_steps=1, action=AlarmAction.rollback, max_rollbacks=2, rollback_learning_rate_factor=0.25
    )
    alarm = CollapseMonitor(settings)
    factors: list[float] = []
    for step in (5, 9):
        assert alarm.learning_rate_factor == 0.25 ** len(factors)
        verdict = alarm.check(step, {ENTROPY: 0.0})
        assert verdict is not None
        assert verdict.action is AlarmAction.rollback
        factors.append(alarm.learning_rate_factor)
    assert factors == [0.25, 0.0625]
    last = alarm.check(13, {ENTROPY: 0.0})
    assert last is not None
    assert last.action is AlarmAction.stop
    assert last.message.endswith("The run has gone back alarm.max_rollbacks=2 times.")
    assert alarm.learning_rate_factor == 0.0625


def test_a_metric_without_a_band_is_ignored() -> None:
    alarm = CollapseMonitor(
        AlarmConfig(
            entropy_nats=None,
            response_tokens=None,
            repeated_fraction=None,
            truncated_fraction=None,
            grad_norm=None,
            after_steps=1,
        )
    )
    assert alarm.check(1, dict.fromkeys(METRICS.values(), float("nan"))) is None


@given(
    name=st.sampled_from(sorted(METRICS)),
    value=st.floats(),
    low=st.none() | st.floats(allow_nan=False),
    high=st.none() | st.floats(allow_nan=False),
)
def test_only_a_value_inside_its_band_has_no_verdict(
    name: str, value: float, low: float | None, high: float | None
) -> None:
    bands = {**dict.fromkeys(METRICS, None), name: [low, high]}
    verdict = CollapseMonitor(AlarmConfig(after_steps=1, **bands)).check(1, {METRICS[name]: value})  # type: ignore[arg-type]
    inside = (low is None or value >= low) and (high is None or value <= high) and value == value
    assert (verdict is None) == inside


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("alarm.reward=[1, 0]", "alarm.reward=[1.0, 0.0] must be [low, high], low below high, or null where open"),
        ("alarm.reward=[1]", "alarm.reward=[1.0] must be [low, high]"),
        ("alarm.reward=[]", "alarm.reward=[] must be [low, high]"),
        ("alarm.reward=[0, 1, 2]", "must be [low, high]"),
        ("alarm.reward=[0, .inf]", "alarm.reward=inf must be finite"),
        ("alarm.reward=0.5", "alarm.reward"),
        ("alarm.after_steps=0", "alarm.after_steps=0 must be greater than 0"),
        ("alarm.rollback_learning_rate_factor=2", "alarm.rollback_learning_rate_factor=2.0 must be between 0 and 1"),
    ],
)
def test_wrong_settings(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DEMO, [word])
    assert message in str(caught.value)


def test_bands_may_be_open_or_gone() -> None:
    alarm = load(DEMO, ["alarm.reward=[null, 0.9]", "alarm.entropy_nats=null", "alarm.grad_norm=[null, null]"]).alarm
    assert (alarm.reward, alarm.entropy_nats, alarm.grad_norm) == ([None, 0.9], None, [None, None])


def test_a_collapse_has_an_exit_code_of_its_own() -> None:
    assert CollapseError("x").exit_code == 3
