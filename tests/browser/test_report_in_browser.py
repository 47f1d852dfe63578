"""Tests of the report in Chromium: clicks, filters, hovering, the keyboard, and hostile texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from demopsd_dist.report import write_report
from tests.browser.chromium import POOR_CONTRAST, Tab, texts
from tests.browser.recorded_runs import HOSTILE, LONG_LINE, a_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = a_run(tmp_path_factory.mktemp("runs"), steps=6, responses=40)
    return write_report([run], run / "report.html")


def assert_no_problems(tab: Tab, page: Path) -> None:
    """Assert that there were no errors, and that nothing but the file was loaded."""
    assert tab.problems == []
    assert tab.requests == [page.resolve().as_uri()]


def test_a_reader_finds_a_token(tab: Tab, report: Path) -> None:
    tab.open(report)
    assert texts(tab, ".count") == ["240 of 240 samples"]
    tab.click(".row", 2)
    tab.wait("document.querySelectorAll('.row')[2].getAttribute('aria-selected') === 'true'")
    tab.hover(".token", 3)
    assert "4 of" in texts(tab, ".panel h4")[0]
    assert texts(tab, ".candidates thead th") == ["token", "student", "reference", "teacher", "barycenter"]
    assert len(texts(tab, ".candidates tbody tr")) == 6, "five candidates and all other tokens"
    column = [float(text.lstrip("<")) for text in texts(tab, ".candidates tbody td:nth-child(4) span")]
    assert sum(column) == pytest.approx(100, abs=0.5)
    tab.click(".token", 5)
    tab.press("ArrowRight")
    assert "7 of" in texts(tab, ".panel h4")[0], "the keyboard continues from the clicked token"
    assert_no_problems(tab, report)


def test_filters_search_and_order(tab: Tab, report: Path) -> None:
    tab.open(report)
    tab.choose("#field", "physics")
    assert texts(tab, ".count") == ["60 of 240 samples"]
    tab.choose("#reward", "right")
    assert set(texts(tab, ".verdict .hidden")) == {" right"}
    tab.choose("#step", "2")
    assert texts(tab, ".count") == ["4 of 240 samples"]
    for selector in ("#field", "#reward", "#step"):
        tab.choose(selector, "")
    tab.choose("#least", "0.9")
    assert 0 < int(texts(tab, ".count")[0].split()[0]) < 60
    tab.choose("#least", "0")
    tab.click("#search")
    tab.type("7 mol in step 3")
    tab.wait("document.querySelector('.count').textContent === '4 of 240 samples'")  # 7, 17, 27 and 37 mol
    tab.choose("#search", "")
    tab.wait("document.querySelector('.count').textContent === '240 of 240 samples'")
    tab.choose("#sort", "new")
    assert "step 6" in texts(tab, ".row-facts")[0]
    tab.choose("#search", "not in any sample")
    tab.wait("document.querySelector('.detail .note')")
    assert_no_problems(tab, report)


def test_the_list_by_keyboard(tab: Tab, report: Path) -> None:
    tab.open(report)
    tab.run("document.querySelector('.rows').focus()")
    for key, index in (("ArrowDown", 2), ("ArrowDown", 3), ("End", 240), ("ArrowUp", 239), ("Home", 1)):
        tab.press(key)
        tab.wait(f"document.querySelector('.row[aria-selected=true]')?.getAttribute('aria-posinset') === '{index}'")
    assert tab.run("document.querySelector('.rows').getAttribute('aria-activedescendant')") == "row-0"


def test_colours_follow_the_switch(tab: Tab, report: Path) -> None:
    tab.open(report)
    colours = {}
    shade = "getComputedStyle(document.querySelector('.token[aria-selected=true]')).backgroundColor"
    for index, name in enumerate(("alpha", "disagreement", "entropy", "surprise")):
        tab.click(".choice label", index)
        assert tab.run("document.querySelector('.response').dataset.measure") == name
        colours[name] = tab.run(shade)
    assert len(set(colours.values())) == 4
    tab.click("#theme")
    tab.click("#theme")
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    assert tab.run(shade) != colours["surprise"]
    tab.click("#theme")
    assert_no_problems(tab, report)


def test_charts_show_their_values(tab: Tab, report: Path) -> None:
    tab.open(report)
    chart = "[...document.querySelectorAll('.chart')].find((node) => node.querySelector('h3').textContent === 'Loss')"
    tab.run(f"{chart}.querySelector('svg[role=img]').focus()")
    tab.press("End")
    assert tab.run(f"{chart}.querySelector('.tip').textContent") == "step 6loss 0.167"
    tab.press("ArrowLeft")
    assert tab.run(f"{chart}.querySelector('.tip').textContent") == "step 5loss 0.2"
    tab.run(f"{chart}.querySelector('summary').click()")
    tab.wait(f"{chart}.querySelectorAll('tbody tr').length === 6")
    tab.hover(".chart svg[role=img]")
    assert texts(tab, ".tip:not([hidden]) .tip-head")
    tab.choose("#metric", "perf/step_s")
    assert texts(tab, ".explorer-chart h3") == ["perf/step_s"]
    assert "time from the end of the previous step to the end of this one (s)" in texts(tab, ".explorer-chart p")[0]
    assert_no_problems(tab, report)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible(tab: Tab, report: Path, width: int, dark: bool) -> None:
    """Contrast of all texts by WCAG AA, and no horizontal scrolling."""
    tab.open(report, width=width, dark=dark)
    tab.run("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert tab.run("document.documentElement.scrollWidth") == width
    for index in range(4):
        tab.click(".choice label", index)
        assert tab.run(POOR_CONTRAST) == []


def test_hostile_texts_stay_text(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=2, responses=30, texts=[*HOSTILE, LONG_LINE])
    page = write_report([run], run / "report.html")
    assert page.stat().st_size < 4e6, "a line of 1 MB is truncated"
    tab.open(page)
    elements = "document.querySelectorAll('script, img, iframe, object, embed, form, style, svg').length"
    before = tab.run(elements)
    for index in range(6):
        tab.click(".row", index)
        tab.wait(f"document.querySelectorAll('.row')[{index}].getAttribute('aria-selected') === 'true'")
        tab.run("document.querySelectorAll('details').forEach((node) => (node.open = true))")
        for token in range(3):
            tab.hover(".token", token)
    assert tab.run("document.title") == "demo – run report"
    shown = tab.run("document.body.innerText")
    assert "<script>document.title='taken'</script>" in shown
    for escaped in ("\\x1b]0;taken\\x07", "\\u202e", "\\u2066", "\\x9b", "more characters"):
        assert escaped in shown
    assert not {"\x1b", "\x9b", "\u202e", "\u2066", "\u200f", "\ufeff", "\x07"} & set(shown)
    assert tab.run("document.querySelectorAll('main img, main script, main iframe').length") == 0
    assert tab.run(elements) == before + tab.run("document.querySelectorAll('.chart .numbers svg').length")
    assert tab.run("document.documentElement.scrollWidth") == 1280
    assert_no_problems(tab, page)


def test_ten_thousand_samples(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=250, responses=40)
    page = write_report([run], run / "report.html")
    tries = 0
    while (seconds := tab.open(page)) >= 3 and tries < 4:  # repeated on a busy machine
        tries += 1
    print(f"10,000 samples, {page.stat().st_size / 1e6:.1f} MB: first view after {seconds:.2f} s")
    assert seconds < 3
    assert texts(tab, ".count") == ["10,000 of 10,000 samples"]
    assert len(texts(tab, ".row")) < 40, "only the visible rows are elements"
    tab.run("document.querySelector('.rows').focus()")
    tab.press("End")
    tab.wait("document.querySelector('.row[aria-selected=true]')?.getAttribute('aria-posinset') === '10000'")
    tab.choose("#search", "what is the mass of 39 mol in step 250")
    tab.wait("document.querySelector('.count').textContent === '1 of 10,000 samples'")
    assert_no_problems(tab, page)


def test_runs_beside_each_other(tab: Tab, tmp_path: Path) -> None:
    one = a_run(tmp_path, steps=5, responses=10, words=["name=one"])
    other = a_run(tmp_path, steps=7, responses=10, words=["name=other", "demopsd.alpha_max=0.5", "seed=3"])
    page = write_report([one, other], tmp_path / "both.html")
    tab.open(page)
    assert texts(tab, "main > section:not([hidden]) > h2")[0] == "Settings that differ"
    differ = texts(tab, "#differ-table tbody th")
    assert differ == ["steps", "seed", "demopsd.alpha_max", "name"]
    assert texts(tab, "#differ-table tbody tr:nth-child(3) td") == ["0.15", "0.5"]
    loss = "[...document.querySelectorAll('.chart')].find((node) => node.querySelector('h3').textContent === 'Loss')"
    assert tab.run(f"[...{loss}.querySelectorAll('.legend li')].map((node) => node.textContent)") == ["one", "other"]
    tab.choose("#run", "1")
    assert texts(tab, ".count") == ["70 of 120 samples"]
    assert all(text.startswith("other") for text in texts(tab, ".row-facts"))
    assert_no_problems(tab, page)


def test_a_run_that_has_only_begun(tab: Tab, tmp_path: Path) -> None:
    run = a_run(tmp_path, steps=1, responses=1)
    (run / "metrics.jsonl").write_text('{"step": 1, "learner/loss": NaN, "perf/step_s": 1.0}\n{"step": 2, "lear')
    for path in (run / "samples").iterdir():
        path.unlink()
    page = write_report([run], run / "report.html")
    tab.open(page)
    assert texts(tab, "#samples .note")[0].startswith("No samples were recorded")
    assert "1 of 1 steps so far" in texts(tab, "#about")[0]
    assert_no_problems(tab, page)
