"""Records of a real run, compared with plain forwards of the model that it began with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from demopsd_dist.report import write_report
from demopsd_dist.run_record import metric_glossary, samples
from demopsd_dist.training.run import Task
from tests.browser.chromium import chromium, chromium_path

Logits = Callable[[list[tuple[np.ndarray, np.ndarray]]], list[Tensor]]


def hold_metrics(records: list[dict[str, float]]) -> None:
    names = {name for record in records for name in record} - {"step"}
    assert [name for name in sorted(names) if metric_glossary.find_metric(name) is None] == [], (
        "missing in demopsd_dist/run_record/metric_glossary.py"
    )


def hold_samples(folder: Path, task: Task, logits_of: Logits) -> None:
    """Compare the samples of the first step: student and reference are the model itself, and the teacher is the model
    with the privileged view."""
    assert [path.name for path in samples.files(folder / "samples")] == [f"step-00000{i}.parquet" for i in (1, 2, 3)]
    rows = [row for row in samples.read(samples.file_path(folder / "samples", 1)) if row["learned"]]
    assert len(rows) > 4

    def ids(text: str) -> np.ndarray:
        return np.asarray(task.prompts.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    for name, view in (("student", "student_view"), ("reference", "student_view"), ("teacher", "privileged_view")):
        pairs = [(ids(row[view]), np.asarray(row["token_ids"], np.int32)) for row in rows]
        for row, logits in zip(rows, logits_of(pairs), strict=True):
            logp = np.take_along_axis(logits.log_softmax(-1).numpy(), np.asarray(row["candidate_ids"]), -1)
            np.testing.assert_allclose(np.asarray(row[f"{name}_logp"]), logp, atol=2e-4)
    for row in rows:
        alpha, d = np.asarray(row["alpha"]), np.asarray(row["disagreement"])
        np.testing.assert_allclose(alpha, 0.15 * np.tanh(25 * d), atol=1e-5)
        assert "".join(row["token_texts"]).startswith(row["response"])
    assert max(max(row["disagreement"]) for row in rows) > 0.1, "somewhere the solution changes what is said"


def hold_report(folder: Path) -> None:
    page = write_report([folder], folder / "report.html")
    if chromium_path() is None:
        return
    with chromium() as tab:
        tab.open(page)
        shown = tab.run("document.querySelector('.count').textContent")
        assert shown == "48 of 48 samples"
        tab.hover(".token", 2)
        assert tab.run("document.querySelectorAll('.candidates tbody tr').length") == 6
        assert tab.problems == []
        assert tab.requests == [page.resolve().as_uri()]
