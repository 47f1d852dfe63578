"""Tests of the report's data from run folders that are finished, being written, or continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demopsd_dist.report import page_data, write_report
from demopsd_dist.report.page import MAX_SAMPLES, MAX_TOKENS, is_kept, thinning
from demopsd_dist.report.read_run import RunFiles, read_run
from demopsd_dist.util.errors import DataError
from tests.browser.recorded_runs import a_run


@pytest.mark.parametrize(
    ("files", "rows", "tokens"),
    [
        (10, 320, 9_000),
        (400, 12_800, 300_000),
        (1000, 32_000, 900_000),
        (50, 1600, 3_000_000),
        (1, 64, 4_000_000),
        (15_000, 15_000, 15_000),
        (19_000, 19_000, 9_000),
    ],
)
def test_a_page_stays_within_its_bounds_and_uses_them(files: int, rows: int, tokens: int) -> None:
    file_every, row_every = thinning(files, rows, tokens)
    files_read = len(range(0, files, file_every))
    rows_read = sum(is_kept(index, row_every) for index in range(files_read * (rows // files)))
    over = max(rows / MAX_SAMPLES, tokens / MAX_TOKENS)
    if over <= 1:
        assert rows_read == rows
    else:
        assert rows_read * tokens / rows <= 1.1 * MAX_TOKENS
        assert rows_read <= 1.1 * MAX_SAMPLES
        assert rows_read >= rows / over / 1.1


def test_totals_and_rare_metrics_of_a_long_run_are_whole() -> None:
    """Curves show a fifth of 10,000 steps; sums, extremes, rare metrics and the last step are those of all steps."""
    steps = [{"step": i, "time/learn_s": 10.0, "mismatch/logp_diff_max": 1e-5} for i in range(1, 10_001)]
    steps[7_777]["mismatch/logp_diff_max"] = 0.9
    steps[42]["learner/loss"] = float("nan")
    for step in steps[9::10]:
        step["drift/initial_kl_nats"] = step["step"] / 1e4
    run = page_data.run_data(RunFiles("long", {}, steps, [], {}, []))
    assert (run["steps"], run["step"][-1], len(run["step"]) < 3_000) == (10_000, 10_000, True)
    assert run["totals"]["time/learn_s"] == {"sum": 1e5, "min": 10, "max": 10, "last": 10, "count": 10_000}
    assert run["totals"]["mismatch/logp_diff_max"]["max"] == 0.9
    assert "learner/loss" not in run["totals"]
    shown = [value for value in run["metrics"]["drift/initial_kl_nats"] if value is not None]
    assert 400 <= len(shown) <= 1_000
    assert shown[-1] == 1.0


def test_a_run_that_is_being_written_and_one_that_went_on(tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=3, responses=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "learner/loss": 0.25}) + "\n")  # step 3 again, from a checkpoint
        file.write('not json\n"nor this"\n{"step": 4, "learner/lo')
    files = read_run(run)
    assert [step["step"] for step in files.steps] == [1, 2, 3]
    assert files.steps[2]["learner/loss"] == 0.25
    assert [(line["step"], line["evaluation"]) for line in files.evaluations] == [
        (0, "test"),
        (0, "ood"),
        (3, "test"),
        (3, "ood"),
    ]
    assert files.summary == {}
    assert len(files.sample_files) == 3
    with pytest.raises(DataError, match="the report cannot be written there"):
        write_report([run], tmp_path / "nowhere" / "report.html")


def test_settings_that_differ_come_first_and_names_last(tmp_path: Path) -> None:
    words = (["name=a"], ["name=b", "seed=2", "samples.tokens=9"])
    runs = [read_run(a_run(tmp_path, steps=1, responses=1, words=chosen)) for chosen in words]
    rows = page_data.differences(runs)
    assert [row["key"] for row in rows] == ["seed", "samples.tokens", "name"]
    assert rows[0]["values"] == ["0", "2"]
    assert page_data.differences([runs[0], runs[0]]) == []


def test_numbers_that_json_cannot_hold_are_nothing() -> None:
    assert [page_data.number(value) for value in (float("nan"), float("inf"), None, True, "1")] == [None] * 5
    assert page_data.number(1 / 3) == 0.333333
