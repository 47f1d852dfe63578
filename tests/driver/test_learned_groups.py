"""Groups that a step can learn from, with stand-ins for the roles: sources of solutions and refilled groups."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record import samples
from launch._task import build_task
from tests.driver.test_loop import DEMO, SMALL, DriverRun


def test_a_solution_of_the_data_teaches_without_a_right_sibling(tmp_path: Path) -> None:
    """A student that is never right: with siblings it learns nothing, with the data's solutions from all responses."""
    words = ["method=opsd", "opsd.top_k=4", "privileged.source=dataset"]
    config = load(DEMO, [*SMALL, *words])
    with_solutions = build_task(config, MODEL_DIR, load_data(config.data).questions)[0]
    run = DriverRun(tmp_path, with_solutions, "steps=2", *words, skill=0.0)
    for batch in run.batches:
        assert len(batch.items) == 24
        for item in batch.items:
            view = with_solutions.prompts.tokenizer.decode(item.example.privileged_tokens)
            assert view.count(item.example.question.solution) == 1
            assert item.example.reward == 0.0
    for record in run.log_of_steps():
        assert record["privileged/dataset_fraction"] == record["rollout/learned_fraction"] == 1.0
        assert record["privileged/cut_fraction"] == 0.0
        assert "privileged/sibling_fraction" not in record
    with sqlite3.connect(run.folder.ledger) as ledger:
        counts = ledger.execute("SELECT reason, count(*) FROM events WHERE event = 'scored' GROUP BY reason").fetchall()
    assert counts == [("dataset", 48)]
    rows = [row for path in samples.files(run.folder.samples) for row in samples.read(path)]
    assert {row["solution_source"] for row in rows} == {"dataset"}
    siblings = DriverRun(tmp_path, with_solutions, "steps=1", "method=sdpo", skill=0.0)
    assert siblings.batches[0].items == []
