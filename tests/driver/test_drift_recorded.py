"""Distance to the initial model in the records of a run, and what becomes of it without the initial responses."""

from __future__ import annotations

import asyncio
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.metric_glossary import find_metric
from demopsd_dist.testing import World, stand_in_roles
from demopsd_dist.training.probes import initial_responses
from demopsd_dist.training.probes.drift import mean_kl
from demopsd_dist.training.probes.initial_responses import InitialResponse
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState
from demopsd_dist.util.errors import CheckpointError
from launch._task import build_task, compose_run
from tests.driver.test_loop import DEMO, SMALL

NAME = "drift/initial_kl_nats"


def ran(tmp_path: Path, *words: str, damaged: bool = False) -> tuple[RunFolder, dict[int, float], str]:
    """A run of 7 steps; its folder, the distances by step, and what it said."""
    config = load(DEMO, [*SMALL, f"output_dir={tmp_path}", "steps=7", "evaluation.at_start=false", *words])
    task, _ = build_task(config, MODEL_DIR, load_data(config.data).questions)
    folder, screen = RunFolder.create(config), StringIO()
    if damaged:
        folder.initial_responses.write_bytes(b"PK torn")
    with RunLog(folder, config.steps, Console(file=screen, width=400)) as log:
        run = compose_run(config, stand_in_roles(World()), task, log)
        asyncio.run(train_with_recovery(run, RunState(), "started"))
        run.ledger.close()
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return folder, {line["step"]: line[NAME] for line in lines if NAME in line}, screen.getvalue()


def test_it_is_measured_after_the_first_step_every_few_and_after_the_last(tmp_path: Path) -> None:
    folder, found, _ = ran(tmp_path, "drift.every_steps=3", "drift.responses=2")
    assert set(found) == {1, 3, 6, 7}
    assert all(value > 0 for value in found.values()), "the stand-in learner differs from step to step"
    assert find_metric(NAME)
    kept = initial_responses.read(folder.initial_responses)
    assert len(kept) == 2
    assert len({one.prompt.tobytes() for one in kept}) == 2, "one response a question"


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    folder, found, _ = ran(tmp_path, "drift.every_steps=0")
    assert found == {}
    assert not folder.initial_responses.exists()


def test_a_damaged_file_is_said_and_stops_nothing(tmp_path: Path) -> None:
    _, found, said = ran(tmp_path, damaged=True)
    assert found == {}
    assert "initial_responses.npz cannot be read" in said
    assert "The distance to the initial model is not measured." in said


def test_responses_come_back(tmp_path: Path) -> None:
    path, random = tmp_path / "initial_responses.npz", np.random.default_rng(0)
    written = [
        InitialResponse(
            np.arange(3 + i, dtype=np.int32),
            np.arange(5, dtype=np.int32),
            np.arange(10, dtype=np.int32).reshape(5, 2),
            random.normal(size=(5, 3)).astype(np.float32),
        )
        for i in range(12)  # more than ten: their order is not that of their names
    ]
    initial_responses.write(path, written)
    for one, other in zip(written, initial_responses.read(path), strict=True):
        for name in vars(one):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="cannot be read"):
        initial_responses.read(path)


def test_the_mean_is_over_tokens() -> None:
    even, skewed = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    kl = float((np.exp(even) * (even - skewed)).sum())
    pairs = [(even, skewed), (np.repeat(even, 3, 0), np.repeat(even, 3, 0))]
    assert mean_kl(pairs) == pytest.approx(kl / 4)
