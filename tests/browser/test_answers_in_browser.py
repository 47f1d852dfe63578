"""Evaluation responses in the report in Chromium: before and after the training, by change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from demopsd_dist.report import write_report
from tests.browser.chromium import POOR_CONTRAST, Tab, texts
from tests.browser.recorded_runs import HOSTILE, a_run


@pytest.mark.parametrize("width", [1280, 400])
def test_responses_before_and_after_stand_side_by_side(tab: Tab, tmp_path: Path, width: int) -> None:
    run = a_run(tmp_path, steps=6, responses=4)
    tab.open(write_report([run], run / "report.html"), width=width)
    tab.wait("document.querySelectorAll('.answer').length === 6")
    assert "Evaluation responses" in texts(tab, "nav a")
    assert texts(tab, ".answer-count")[:3] == [
        "1 of 4 → 3 of 4 right",
        "0 of 4 → 0 of 4 right",
        "2 of 4 → 1 of 4 right",
    ]
    for change, count in (("better", "1 of 4 → 3 of 4"), ("worse", "2 of 4 → 1 of 4"), ("never", "0 of 4 → 0 of 4")):
        tab.choose("#answer-change-0", change)
        assert texts(tab, ".answer-count") == [f"{count} right"] * 2
    tab.choose("#answer-change-0", "better")
    tab.choose("#answer-split-0", "ood")
    tab.click(".answer summary")
    tab.wait("document.querySelector('.answer-columns')")
    assert texts(tab, ".answer-columns h4") == ["before training", "after step 6"]
    assert [len(text) > 0 for text in texts(tab, ".answer-columns .sibling")] == [True] * 8
    assert tab.run("document.querySelectorAll('.answer-columns .badge.right').length") == 4
    assert tab.run(POOR_CONTRAST) == []
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.problems == []


def test_hostile_responses_stay_text_and_a_run_without_any_has_no_section(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=1, responses=4, texts=HOSTILE)
    tab.open(write_report([run], run / "report.html"))
    tab.wait("document.querySelectorAll('.answer').length === 6")
    tab.run("document.querySelectorAll('.answer').forEach((node) => (node.open = true))")
    tab.wait("document.querySelectorAll('.answer-columns').length === 6")
    assert tab.run("document.title") == "demo – run report"
    assert tab.run("document.querySelectorAll('.answer script, .answer img, .answer svg').length") == 0
    assert tab.problems == []
    shutil.rmtree(run / "evaluations")
    tab.open(write_report([run], run / "report.html"))
    assert "Evaluation responses" not in texts(tab, "nav a")
    assert tab.problems == []
