"""A run on several training sets: draws by weight, metrics of each set, and the same draws after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record import metric_glossary
from launch._task import build_task
from tests.driver.test_loop import DEMO, SMALL, DriverRun


def test_a_run_draws_by_weight_and_reports_each_set(tmp_path: Path) -> None:
    for name in ("plus", "minus"):
        records = [{"prompt": f"{i} {name} 1?", "answer": i} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    word = f"data.train=[{{path: {tmp_path}/plus.jsonl, weight: 2}}, {{path: {tmp_path}/minus.jsonl}}]"
    config = load(DEMO, [*SMALL, word])
    task = build_task(config, MODEL_DIR, load_data(config.data).questions)[0]
    run = DriverRun(tmp_path / "runs", task, "steps=6", word)
    lines = run.log_of_steps()
    drawn = {name: sum(line[f"train_set/groups_{name}"] for line in lines) for name in ("plus", "minus")}
    assert sum(drawn.values()) == 36
    assert abs(drawn["plus"] - 24) <= 2
    for line in lines:
        shares = [line[f"train_set/groups_{name}"] * line[f"train_set/reward_mean_{name}"] for name in drawn]
        assert sum(shares) / 6 == pytest.approx(line["rollout/reward_mean"])
    assert all(metric_glossary.find_metric(name) for name in lines[0] if name != "step")
