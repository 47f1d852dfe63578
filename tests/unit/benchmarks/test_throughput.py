"""The throughput benchmark without its runs: points of a sweep, figures of a run, tables, and the comparison of sweeps
beyond the noise."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.common.intervals import independent_ratio, paired_ratio, student_t
from benchmarks.throughput.compare_sweeps import changes, comparison, read_sweep
from benchmarks.throughput.measure import figures, main
from benchmarks.throughput.sweep import DEFAULT_SWEEP, STAGES, Point, device_name, devices, parse_numbers, points_of
from benchmarks.throughput.throughput_page import plot, report, steps_of
from demopsd_dist.config import load
from demopsd_dist.util.errors import ConfigError, InputError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def labels(sweep: dict[str, Any], product: bool = False) -> list[str]:
    return [point.label for point in points_of(DEMO, [], sweep, 6, product)]


@cache
def two_points() -> list[Point]:
    return points_of(DEMO, [], {"rollout-workers": (1, 2)}, 6, False)


def result(noise: float = 0.03, seed: int = 0, rounds: int = 3, slower: float = 1.0) -> dict[str, Any]:
    """Result of a sweep: one worker does 60 samples/s, two do 100; `slower` multiplies the learners' time."""
    random = Random(seed)

    def one_round(workers: int) -> dict[str, Any]:
        factor = random.lognormvariate(0, noise)
        stage_s = dict.fromkeys(STAGES, 0.4 * factor) | {"learn": 0.5 * slower * factor}
        samples = factor * 60 * workers**0.737
        return {
            "step_s": 192 / samples,
            "samples_per_s": samples,
            "tokens_per_s": 20 * samples,
            "stage_s": stage_s,
            "stage_tokens_per_s": {"sample": 4000.0 * workers * factor, "learn": 3000.0},
            "start_s": 20.0,
            "memory_gib": {"rollout": 1.8, "teacher": 0.9, "learner": 0.8},
            "gpu_memory_gib": {},
            "load": 0.5,
        }

    rows = [
        {
            "label": point.label,
            "settings": point.settings,
            "roles": "some",
            "devices": devices(point.config, 2),
            "rounds": [one_round(point.settings["rollout-workers"]) for _ in range(rounds)],
            "failed": None,
        }
        for point in two_points()
    ]
    return {
        "config": "configs/demo.yaml",
        "overrides": [],
        "device": "cpu",
        "machine": {"nodes": 1, "cpus": 2.0, "gpus": 0.0, "architecture": "x86_64"},
        "warm_up": 2,
        "steps": 4,
        "seed": 0,
        "commit": "abc",
        "versions": {"python": "3.11"},
        "points": rows,
    }


def test_one_factor_at_a_time_is_the_default_and_a_shared_point_is_run_once() -> None:
    swept = labels(DEFAULT_SWEEP)
    assert swept[:2] == ["rollout-workers=1 zero=2", "rollout-workers=2 zero=2"]
    assert len(swept) == len(set(swept)) == 5
    assert len(labels(DEFAULT_SWEEP, product=True)) == 8
    assert parse_numbers("1,2,2,4") == (1, 2, 4)


def test_a_point_has_its_settings_and_no_work_that_only_some_steps_do() -> None:
    (point,) = points_of(DEMO, ["rollout.group_size=4"], {"ahead": (1,)}, 6, False)
    assert (point.config.rollout.ahead, point.config.rollout.group_size, point.config.steps) == (1, 4, 6)
    assert point.config.checkpoint.every_steps == point.config.leakage.every_steps == 0
    with pytest.raises(ConfigError, match=r"learner.zero_stage=4: learner.zero_stage"):
        points_of(DEMO, [], {"zero": (4,)}, 6, False)


def test_devices_are_cores_kept_busy_or_gpus_claimed() -> None:
    demo = load(DEMO, ["rollout.num_workers=1"])
    assert devices(demo, 2) == {"sample": 1, "support": 2, "score": 2, "learn": 2, "all": 2}
    words = ["rollout.gpus_per_worker=1", "learner.gpus_per_worker=1", "rollout.num_workers=4"]
    assert devices(load(DEMO, words), 16) == {"sample": 4, "support": 2, "score": 2, "learn": 2, "all": 6}
    assert device_name(demo, {"accelerator_type:H100": 1.0}) == "cpu"
    assert device_name(load(DEMO, words), {"CPU": 16, "accelerator_type:H100": 1.0}) == "h100"


def test_figures_are_totals_over_the_steps_that_count() -> None:
    fast = {"perf/step_s": 1.0, "rollout/samples": 100.0, "rollout/tokens": 2000.0, "rollout/learned_tokens": 1000.0}
    slow = fast | {"perf/step_s": 3.0, "time/learn_s": 0.5, "time/sample_s": 1.0}
    of_run = figures([fast | {"time/learn_s": 0.3, "time/sample_s": 1.0}, slow])
    assert of_run["samples_per_s"] == 50.0  # not the mean of 100 and 33
    assert of_run["stage_s"]["learn"] == pytest.approx(0.4)
    assert of_run["stage_tokens_per_s"] == pytest.approx({"sample": 2000.0, "learn": 2500.0})


def test_a_slowdown_of_both_cancels_out_of_a_paired_ratio() -> None:
    both = [1.0, 5.0, 2.0]
    ratio = paired_ratio([2.0 * slow for slow in both], both)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert independent_ratio([2.0 * slow for slow in both], both).low < 1.0


def test_an_independent_ratio_is_welchs() -> None:
    """Computed by hand: logarithms 0 and 1 against 0, 2 and 4; 2.86 degrees of freedom, rounded down to 2."""
    ratio = independent_ratio([1.0, 2.718281828], [1.0, 7.389056099, 54.59815003])
    half = student_t(2) * (0.5 / 2 + 4 / 3) ** 0.5
    assert ratio.value == pytest.approx(2.718281828**-1.5)
    assert ratio.high / ratio.value == pytest.approx(2.718281828**half)
    assert not independent_ratio([2.0], [1.0, 1.1]).leaves_out_one


def test_equal_sweeps_seldom_differ_and_a_change_is_found() -> None:
    differs = [changes(result(seed=2 * i), result(seed=2 * i + 1))[0].beyond_noise for i in range(300)]
    assert sum(differs) / len(differs) < 0.07
    beyond_noise = [change for change in changes(result(seed=1), result(seed=2, slower=1.5)) if change.beyond_noise]
    assert {change.figure for change in beyond_noise} == {"learn, s a step"}


def test_a_comparison_reports_changes_differences_and_its_resolution(tmp_path: Path) -> None:
    old, new = result(seed=1), result(seed=2, slower=2.0)
    new["machine"]["cpus"] = 4.0
    new["points"].pop(0)
    text = "\n".join(comparison(old, new))
    assert "| rollout-workers=2 | learn, s a step | 0.5" in text
    assert "worse |" in text
    assert "differs: cpus: 2.0 -> 4.0" in text
    assert "only in the old: rollout-workers=1" in text
    assert "would have been seen" in text
    assert "no change can be found" in "\n".join(comparison(result(rounds=1), result(rounds=1)))
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert main(["--compare", str(tmp_path / "old.json"), str(tmp_path / "old.json")]) == 0
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="no throughput"):
        read_sweep(tmp_path / "other.json")


def test_tables_report_scaling_and_points_that_failed(tmp_path: Path) -> None:
    sweep = result(noise=0.0)
    (step,) = steps_of(sweep["points"])
    assert (step.workers, step.times("stage_tokens_per_s", "sample").value) == pytest.approx((2.0, 2.0))  # type: ignore
    sweep["points"].append(sweep["points"][0] | {"label": "zero=0", "rounds": [], "failed": "out of memory"})
    text = "\n".join(report(sweep))
    assert "| 1.67 [1.67, 1.67] | 83% | sample 2.00 [2.00, 2.00] | 100% |" in text
    assert "**Failed:** zero=0: out of memory" in text
    plot(sweep, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_sweep_too_large_for_the_machine_is_refused_by_its_point(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DEMO), "--rollout-workers", "1,999", "--dry-run"]) == 2
    assert "error: rollout-workers=999: " in capsys.readouterr().err
    assert main([str(DEMO), "--zero", "0,1", "--dry-run"]) == 0
    assert "2 points, 3 rounds; a run has 2 warm-up and 4 measured steps" in capsys.readouterr().out
