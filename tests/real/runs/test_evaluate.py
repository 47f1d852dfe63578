"""`launch.evaluate` as a user runs it: real engines, all figures, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.common.run_processes import marked
from demopsd_dist.config import load
from demopsd_dist.data.sources import load_split
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.training.evaluate import evaluate
from demopsd_dist.training.evaluation_splits import evaluation_splits
from launch._task import build_task
from launch.evaluate import DEFAULTS
from tests.real.conftest import ROOT, RealRoles


def command(out: Path, *words: str) -> tuple[dict, str]:
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


def evaluate_here(roles: RealRoles, *words: str) -> dict:
    """The same figures from the session's engines, of which there are two, with the weights of the model folder."""
    config = load(DEFAULTS, words)
    task, _ = build_task(config, MODEL_DIR, {"test": load_split(config.data, "test").questions})
    roles.restart()
    results = {
        split.name: asdict(
            asyncio.run(evaluate(roles.roles.rollouts, split.prompts, split.sampling, task.reward, split.form))
        )
        for split in evaluation_splits(config, task)
    }
    return json.loads(json.dumps(results))


def test_figures_are_there_in_order_and_do_not_depend_on_the_number_of_workers(
    roles: RealRoles, tmp_path: Path
) -> None:
    words = ("data.minisci_test_size=16", "evaluation.samples=4", "evaluation.early_answer_samples=2")
    one, said = command(tmp_path / "one.json", *words, "rollout.num_workers=1")
    assert one == evaluate_here(roles, *words)
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
