"""The group tab of the report in Chromium: siblings side by side, rewards, and the one that the teacher saw."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demopsd_dist.report import write_report
from tests.browser.chromium import POOR_CONTRAST, Tab, texts
from tests.browser.recorded_runs import HOSTILE, a_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = a_run(tmp_path_factory.mktemp("runs"), steps=3, responses=16)
    return write_report([run], run / "report.html")


def test_siblings_stand_side_by_side(tab: Tab, report: Path) -> None:
    tab.open(report)
    assert texts(tab, ".view-tab") == ["Tokens", "Group of 8"]
    tab.click(".view-tab", 1)
    assert len(texts(tab, ".sibling")) == 8
    verdicts = [text.startswith("✓ right · reward 1") for text in texts(tab, ".sibling .badge")]
    assert verdicts == [sample % 3 == 0 for sample in range(8)]
    assert texts(tab, ".sibling.own .role")[0] == "this response"
    assert texts(tab, ".sibling.shown .seen") == ["in the teacher’s prompt for this response"]
    assert "response 3 to" in texts(tab, ".sibling.shown pre")[0]
    assert texts(tab, ".group-view .story")[0].startswith("3 of 8 responses are right. The teacher saw the marked one")
    boxes = tab.run("[...document.querySelectorAll('.sibling')].map((node) => node.getBoundingClientRect().y)")
    assert len(set(boxes)) < 8, "more than one in a row"
    tab.click(".row", 2)
    tab.wait("document.querySelectorAll('.row')[2].getAttribute('aria-selected') === 'true'")
    tab.wait("document.querySelector('.group-view')")
    tab.press("ArrowLeft")
    tab.click(".view-tab", 0)
    assert tab.run("!document.querySelector('.group-view') && Boolean(document.querySelector('.token'))")
    tab.run("document.querySelector('.view-tab[aria-selected=true]').focus()")
    tab.press("ArrowRight")
    tab.wait("document.querySelector('.group-view')")
    assert tab.run("document.activeElement.textContent") == "Group of 8"
    assert tab.problems == []


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_group_is_legible(tab: Tab, report: Path, width: int, dark: bool) -> None:
    tab.open(report, width=width, dark=dark)
    tab.click(".view-tab", 1)
    tab.wait("document.querySelector('.group-view')")
    assert tab.run(POOR_CONTRAST) == []
    assert tab.run("document.documentElement.scrollWidth") == width


def test_hostile_responses_of_a_group_stay_text(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=1, responses=8, texts=HOSTILE)
    tab.open(write_report([run], run / "report.html"))
    tab.click(".view-tab", 1)
    tab.wait("document.querySelector('.group-view')")
    assert tab.run("document.title") == "demo – run report"
    assert tab.run("document.querySelectorAll('.sibling script, .sibling img, .sibling svg').length") == 0
    assert tab.problems == []


def test_a_run_of_an_earlier_version_has_no_group_tab(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=1, responses=8)
    for path in (run / "samples").iterdir():
        table = pq.read_table(path)
        groups = [name for name in table.column_names if name.startswith("group_") or name == "shown_samples"]
        assert len(groups) == 4
        pq.write_table(table.drop_columns(groups), path)
    tab.open(write_report([run], run / "report.html"))
    assert texts(tab, ".view-tab") == []
    assert texts(tab, ".token")
    assert tab.problems == []
