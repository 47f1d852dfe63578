"""The served report in Chromium: it renews itself and keeps the reader's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demopsd_dist.report.live import serve_page
from tests.browser.chromium import Tab
from tests.browser.recorded_runs import a_run


def test_the_page_renews_itself_and_the_reader_stays(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=4, responses=20)
    with serve_page(run) as address:
        tab.open(address)
        assert tab.run("document.getElementById('live').textContent") == "Live"
        tab.choose("#field", "physics")
        tab.choose("#sort", "new")
        tab.click(".row", 2)
        chosen = "document.querySelector('.row[aria-selected=true]')"
        tab.wait(f"{chosen}?.getAttribute('aria-posinset') === '3'")
        before = tab.run(f"{chosen}.textContent")
        tab.click(".choice label", 2)
        tab.run("window.scrollTo({ top: 700, behavior: 'instant' })")
        tab.run("(document.documentElement.dataset.old = 'yes')")
        line = {"step": 5, "learner/loss": 0.125, "perf/step_s": 4.0, "demopsd/alpha_mean": 0.1}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        renewed = "document.documentElement?.dataset"  # null while the browser goes to the new page
        tab.wait(f"!{renewed}.old && {renewed}.ready")
        tab.wait("document.getElementById('about')?.textContent.includes('5 of 4 steps so far')")
        tab.wait(f"{chosen} && {chosen}.textContent === {json.dumps(before)}")
        assert tab.run("document.getElementById('field').value") == "physics"
        assert tab.run("document.querySelector('.response').dataset.measure") == "entropy"
        # the browser keeps what the reader sees in its place when the page above it becomes a line longer
        assert tab.run("window.scrollY") == pytest.approx(700, abs=30)
        (run / "summary.json").write_text('{"wall_s": 20, "steps": 5}')
        tab.wait("document.getElementById('live')?.textContent === 'The run is done'")
        hosts = {request.partition("/?")[0].partition("/state")[0] for request in tab.requests}
        assert hosts == {address.partition("/?")[0]}, "nothing else is loaded"
        assert [problem for problem in tab.problems if "favicon" not in problem] == []
