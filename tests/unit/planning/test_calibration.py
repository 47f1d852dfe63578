"""Tests of calibration: known coefficients are recovered, and a file of measurements is read or refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demopsd_dist.planning.calibration import (
    MeasuredRun,
    fit_calibration,
    fit_memory,
    fit_stage,
    nonnegative_least_squares,
    read_calibration,
)
from demopsd_dist.planning.hardware import Device, DeviceCluster
from demopsd_dist.planning.roofline import ASSUMED, STAGES, UNCALIBRATED, Calibration, Coefficients, Load
from demopsd_dist.planning.step_time import plan_run, stage_loads
from demopsd_dist.planning.workload import Split
from demopsd_dist.util.errors import ConfigError
from tests.unit.planning.example_workloads import example_workload


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(8, 10))
def test_coefficients_are_recovered(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    true = Coefficients(0.4, 0.2, 0.3, 0.7, call_s=2e-3, layer_s=1e-4, item_s=5e-4)
    bounds = (10.0, 5.0, 5.0, 10.0, 50.0, 900.0, 200.0)
    loads = [Load(*(rng.uniform(bound / 100, bound) for bound in bounds)) for _ in range(count)]
    fitted = fit_stage(loads, [true.seconds(load) for load in loads], ASSUMED["learn"])
    for load in loads:
        assert fitted.seconds(load) == pytest.approx(true.seconds(load), rel=1e-6)


def test_of_few_cases_what_is_assumed_is_scaled() -> None:
    loads = [Load(1.0, calls=2, layers=3, items=4), Load(2.0, calls=2, layers=3, items=4)]
    fitted = fit_stage(loads, [3 * ASSUMED["learn"].seconds(load) for load in loads], ASSUMED["learn"])
    assert fitted.seconds(Load(5.0, calls=1)) == pytest.approx(3 * ASSUMED["learn"].seconds(Load(5.0, calls=1)))


def test_no_coefficient_is_below_zero() -> None:
    table = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert nonnegative_least_squares(table, np.array([3.0, 2.0, 1.0])).tolist() == pytest.approx([2.0, 0.0])


def test_memory_is_a_base_and_a_factor() -> None:
    assert fit_memory([(1.0, 2.0, 4.9), (3.0, 5.0, 10.5), (2.0, 0.5, 3.55)]) == pytest.approx((0.9, 1.2 + 0.3), abs=0.4)
    base, factor = fit_memory([(1.0, 2.0, 1.0 + 0.7 + 3.0), (3.0, 5.0, 3.0 + 0.7 + 7.5)])
    assert (base, factor) == pytest.approx((0.7, 1.5))


def test_a_calibration_predicts_what_it_was_fitted_to(tmp_path: Path) -> None:
    """Calibration to seconds of known coefficients, written and read as the benchmark's file."""
    core = Device("cpu", 20.0, 0.05, 0.05, 0.05, 10.0, 5.0, 10.0, 1.0, shared=True)
    cluster = DeviceCluster(core, 1, 2)
    true = Calibration(
        {stage: Coefficients(0.3, 0.2, 0.4, 0.5, 1e-3, 1e-4, 1e-4) for stage in STAGES}, {"rollout": (0.5, 1.0)}
    )
    cases = []
    for prompts, layers, ranks in ((4, 2, 1), (8, 4, 2), (16, 2, 2), (6, 8, 1), (12, 3, 1), (5, 5, 2)):
        workload = example_workload(
            f"rollout.prompts_per_step={prompts}", shape=replace(example_workload().shape, layers=layers)
        )
        split = Split(ranks, 1, ranks, shared=True)
        loads, _ = stage_loads(workload, split, cluster, UNCALIBRATED)
        seconds = {stage: true.stages[stage].seconds(loads[stage]) for stage in STAGES}
        cases.append(MeasuredRun(f"case {prompts}", workload, split, seconds))
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"cluster": asdict(cluster), "measured": [asdict(case) for case in cases]}))
    read_cluster, calibration = read_calibration(file)
    assert read_cluster == cluster
    assert fit_calibration(cluster, cases, "x").stages == calibration.stages
    for case in cases:
        plan = plan_run(case.workload, case.split, cluster, calibration)
        assert plan.seconds == pytest.approx(dict(case.seconds), rel=1e-3)
        assert max(case.seconds.values()) < plan.step_s <= 1.001 * sum(case.seconds.values())


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {}, "measured": []}', '{"measured": 3}'])
def test_a_file_that_holds_no_measurements_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"not a file of measurements as benchmarks.plan writes it"):
        read_calibration(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_calibration(tmp_path / "none.json")
