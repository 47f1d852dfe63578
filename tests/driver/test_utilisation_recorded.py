"""Utilisation of the stages in the records of a run, where the peaks of its roles are known."""

from __future__ import annotations

import asyncio
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.metric_glossary import find_metric
from demopsd_dist.testing import World, stand_in_roles
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState, StageSpeed
from launch._task import build_task, compose_run
from tests.driver.test_loop import DEMO, SMALL

PEAKS = {"rollout": 1e9, "teacher": 1e9, "learner": 1e9}


@pytest.mark.parametrize("speed", [StageSpeed(1e3, 1e2, 3.0, PEAKS), None], ids=["with peaks", "without"])
def test_every_step_has_the_utilisation_of_its_stages(tmp_path: Path, speed: StageSpeed | None) -> None:
    config = load(DEMO, [*SMALL, f"output_dir={tmp_path}", "steps=2", "evaluation.at_start=false"])
    task, _ = build_task(config, MODEL_DIR, load_data(config.data).questions)
    folder = RunFolder.create(config)
    with RunLog(folder, config.steps, Console(file=StringIO())) as log:
        run = compose_run(config, stand_in_roles(World()), task, log, speed=speed)
        asyncio.run(train_with_recovery(run, RunState(), "started"))
        run.ledger.close()
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "evaluation" not in line]
    assert len(steps) == 2
    for record in steps:
        found = {name: value for name, value in record.items() if name.endswith("_utilisation")}
        expected = {"sample", "support", "score", "learn"} if speed else set()
        assert set(found) == {f"perf/{stage}_utilisation" for stage in expected}
        assert all(value > 0 for value in found.values())
        assert all(find_metric(name) for name in found)
        if speed:
            again = record["perf/sample_utilisation"] * record["time/sample_s"] * PEAKS["rollout"]
            assert again > 1e3 * record["rollout/tokens"], "at least the layers of every response token"
