"""`launch.evaluate` as a user runs it: real engines, all figures, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.conftest import ROOT, marked


def evaluate(out: Path, *words: str) -> tuple[dict, str]:
    mark = f"evaluate-{out.stem}"
    done = subprocess.run(
        [sys.executable, "-m", "launch.evaluate", "minisci", "minisci", f"--out={out}", *words],
        cwd=ROOT,
        env=os.environ | {"DEMOPSD_TEST_MARK": mark},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert marked(mark) == []
    return json.loads(out.read_text()), done.stdout


def test_figures_are_there_in_order_and_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    words = ("data.minisci_test_size=16", "evaluation.samples=4", "evaluation.early_answer_samples=2")
    one, said = evaluate(tmp_path / "one.json", *words, "rollout.num_workers=1")
    two, _ = evaluate(tmp_path / "two.json", *words, "rollout.num_workers=2")
    assert one == two
    assert set(one) == {"test", "early/test"}, "no training questions were given"
    test = one["test"]
    assert (test["questions"], test["samples"]) == (16, 4)
    assert set(test["mean"]["by_field"]) == {"biology", "chemistry", "materials", "physics"}
    averages = [test["passes"][size]["average"] for size in ("1", "2", "4")]
    assert averages == sorted(averages)
    assert averages[0] == pytest.approx(test["mean"]["average"])
    assert 0.1 < averages[0] < test["best"]["average"] < averages[-1] < 1.0
    assert test["mean"]["low"] <= test["mean"]["average"] <= test["mean"]["high"]
    assert one["early/test"]["mean"]["average"] < averages[0], "without room to reason it knows less"
    assert "mean@4" in said
    assert "best@4 (verl)" in said
