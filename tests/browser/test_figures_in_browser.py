"""Zoom, smoothing and export of the report's figures in Chromium."""

from __future__ import annotations

import csv
import struct
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from demopsd_dist.report import write_report
from tests.browser.chromium import Tab
from tests.browser.recorded_runs import a_run

LOSS = "[...document.querySelectorAll('.chart')].find((node) => node.querySelector('h3').textContent === 'Loss')"
ACCURACY = LOSS.replace("'Loss'", "'Accuracy'")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = a_run(tmp_path_factory.mktemp("runs"), steps=20, responses=4)
    return write_report([run], run / "report.html")


def ticks(tab: Tab, chart: str) -> list[str]:
    """Numbers at the horizontal axis."""
    script = f"[...{chart}.querySelectorAll('.tick[text-anchor=middle]')].map((node) => node.textContent)"
    return [text for text in tab.run(script) if not text.startswith("step")]


def drag(tab: Tab, chart: str, start: float, end: float) -> None:
    """Drag over the chart between two fractions of its width."""
    box = tab.run(
        f"(() => {{ const node = {chart}.querySelector('svg[role=img]'); node.scrollIntoView({{block: 'center', "
        "behavior: 'instant'}); const box = node.getBoundingClientRect(); "
        "return [box.x, box.y, box.width, box.height]; })()"
    )
    x, y, width, height = box
    for kind, share in (("mousePressed", start), ("mouseMoved", (start + end) / 2), ("mouseReleased", end)):
        place = {"x": x + share * width, "y": y + height / 2}
        tab.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)


def test_dragging_zooms_and_a_button_shows_all_again(tab: Tab, report: Path) -> None:
    tab.open(report)
    whole = ticks(tab, LOSS)
    assert whole[-1] == "20"
    reset = f"getComputedStyle({LOSS}.querySelector('.reset')).display"
    assert tab.run(reset) == "none"
    drag(tab, LOSS, 0.3, 0.6)
    tab.wait(f"{LOSS}.classList.contains('zoomed')")
    zoomed = [int(text) for text in ticks(tab, LOSS)]
    assert min(zoomed) >= 4
    assert max(zoomed) <= 13
    assert not tab.run(f"{ACCURACY}.classList.contains('zoomed')"), "other charts stay"
    tab.run(f"{LOSS}.querySelector('.reset').click()")
    assert ticks(tab, LOSS) == whole
    tab.run(f"{LOSS}.querySelector('svg[role=img]').focus()")
    for key, code in (("End", 35), ("+", 187), ("+", 187)):
        tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code)
    assert min(int(text) for text in ticks(tab, LOSS)) >= 14
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="0", windowsVirtualKeyCode=48)
    assert ticks(tab, LOSS) == whole
    assert tab.problems == []


def test_smoothing_keeps_the_recorded_values_visible(tab: Tab, report: Path) -> None:
    tab.open(report)
    lines = (
        f"[...{LOSS}.querySelectorAll('svg[role=img] > .line')]"
        ".map((node) => [node.getAttribute('d'), node.style.opacity])"
    )
    ((recorded, _),) = tab.run(lines)
    tab.choose("#smoothing", "0.8")
    raw, smooth = tab.run(lines)
    assert raw == [recorded, "0.25"]
    assert smooth[0] != recorded
    assert smooth[0].split("L")[0] == recorded.split("L")[0], "it begins at the first value"
    tab.choose("#smoothing", "0")
    assert tab.run(lines) == [[recorded, ""]]
    assert tab.problems == []


def test_terms_symbols_and_units_explain_themselves(tab: Tab, report: Path) -> None:
    tab.open(report)
    terms = dict(tab.run("[...document.querySelectorAll('.term')].map((node) => [node.textContent, node.title])"))
    facts = {"alpha", "disagreement", "entropy", "loss", "sampled with", "weights"}
    views = {"student", "reference", "teacher", "barycenter"}
    assert set(terms) >= facts | views | {"d", "α", "Accuracy", "Alpha", "Disagreement", "Entropy", "Step time"}
    assert all(len(meaning) > 15 for meaning in terms.values())
    assert tab.run("document.querySelectorAll('.candidates thead .term[tabindex]').length") == 4, "by keyboard too"
    units = tab.run(
        "[...document.querySelectorAll('.chart svg[role=img]')].map((node) => "
        "[...node.querySelectorAll('text > title')].map((title) => title.parentNode.firstChild.textContent))"
    )
    assert ["nats a token", "step"] in units
    assert all("step" in one for one in units)
    assert tab.problems == []


def saved(folder: Path, name: str) -> Path:
    """A file that the browser saves, when it is complete."""
    deadline = time.monotonic() + 20
    while not (folder / name).is_file():
        assert time.monotonic() < deadline, f"{name} is not among {[path.name for path in folder.iterdir()]}"
        time.sleep(0.05)
    return folder / name


def test_figures_and_tables_are_saved(tab: Tab, report: Path, tmp_path: Path) -> None:
    tab.open(report)
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for index in (1, 2, 3):
        tab.run(f"{ACCURACY}.querySelectorAll('.tool')[{index}].click()")
    picture = ElementTree.parse(saved(tmp_path, "demo-accuracy.svg")).getroot()
    text = ElementTree.tostring(picture, encoding="unicode")
    assert "var(" not in text
    assert "out of distribution" in text, "the legend is part of the file"
    assert len({node.get("stroke") for node in picture.iter() if node.get("stroke-width") == "2px"}) >= 2, "two lines"
    image = saved(tmp_path, "demo-accuracy.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", image[16:24])
    assert width > 500
    assert height > 400
    with saved(tmp_path, "demo-accuracy.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "step",
        "test",
        "test low",
        "test high",
        *(f"out of distribution{part}" for part in ("", " low", " high")),
    ]
    assert [float(cell) for cell in rows[-1][:4]] == pytest.approx([20, 0.7, 0.28, 0.74])
    tab.run("document.querySelector('#settings-table .tool').click()")
    with saved(tmp_path, "demo-settings.csv").open(newline="") as file:
        settings = dict(csv.reader(file))
    assert settings["demopsd.alpha_max"] == "0.15"
    assert len(settings) > 150
    assert tab.problems == []


def test_a_text_is_no_formula_in_a_spreadsheet(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs", steps=2, responses=8, texts=["=1+1", "-5", '@x,"y"'])
    page = write_report([run], run / "report.html")
    tab.open(page)
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.run("document.querySelector('#top-tokens .tool').click()")
    with saved(tmp_path, "demo-tokens-with-the-most-disagreement.csv").open(newline="") as file:
        tokens = {row[0] for row in csv.reader(file)} - {"token"}
    assert tokens == {"'=1+1", "-5", '\'@x,"y"'}
