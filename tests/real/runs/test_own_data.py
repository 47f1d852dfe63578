"""Data in people's own layouts trains real steps by `data.train=FILE` alone: right answers, and the right solutions."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.minisci.tasks import questions
from demopsd_dist.run_record import samples
from launch._data_shown import own_answer_lines
from launch._task import build_task
from tests.real.conftest import RealRoles, demo
from tests.real.runs.test_training import trained
from tests.unit.data.sources.people_files import RECORDS, people_files, working

STEPS = 2
FEW = ["evaluation.at_start=false", "leakage.every_steps=0", "samples.every_steps=1", "samples.responses=64"]


@pytest.mark.parametrize("layout", ["gsm8k", "verl", "trl", "mmlu"])
def test_two_real_steps(layout: str, roles: RealRoles, tmp_path: Path) -> None:
    # the demo model chooses no letter, so only the bare answer can be shown
    source = "answer_only" if layout == "mmlu" else "sibling_or_dataset"
    shown = [f"privileged.source={source}"]
    path = people_files(tmp_path)[layout]
    words = [f"data.train={path}", f"steps={STEPS}", f"output_dir={tmp_path}", *FEW, *shown]
    config = demo(*words)
    data = load_data(config.data)
    task, _ = build_task(config, MODEL_DIR, data.questions)
    assert own_answer_lines(task, data.splits)[0].endswith("all right")
    began = time.monotonic()
    steps, summary = trained(roles, task, config)
    print(f"{layout}: {STEPS} steps and an evaluation in {time.monotonic() - began:.1f} s")
    assert [record["step"] for record in steps] == [1, 2]
    assert summary["logp_diff_max"] <= 1e-3
    rows = [row for step in (1, 2) for row in samples.read(samples.file_path(tmp_path / "demo" / "samples", step))]
    originals = {f"{path.stem}/{number}": one for number, one in enumerate(questions("train", RECORDS, seed=5), 1)}
    assert len({row["prompt_id"] for row in rows}) >= 8
    for row in rows:
        original = originals[row["prompt_id"]]
        assert original.text in row["student_view"]
        if layout == "mmlu":
            assert f"\n{row['expected']}: {original.answer}\n" in row["student_view"]
            continue
        assert row["expected"] == original.answer
        assert row["learned"]
        if row["solution_source"] == "dataset":
            assert working(original) in row["privileged_view"]
    sources = {row["solution_source"] for row in rows}
    assert ("answer_only" if layout == "mmlu" else "dataset") in sources
    assert all(record["learner/grad_norm"] > 0 for record in steps)
