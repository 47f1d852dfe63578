"""The site of the documents: built without a warning, complete, and loading nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="make site installs the generator of the site")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_contents() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    contents = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    named = re.findall(r"[\w/]+\.md", str(contents))
    assert sorted(named) == sorted({*named})
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {*named} - {"overview.md", "configs/README.md"}


def test_files_outside_of_the_pages_are_there(site: Path) -> None:
    """Files outside of docs/ that pages link to: settings, results, code, and the pictures of copied pages."""
    for name in ("configs/index.html", "overview/index.html", "demopsd_dist/config/schema.py", "images/report.png"):
        assert (site / name).is_file(), name
    assert (site / "benchmarks/results/plan-cpu/index.html").is_file()
    assert "By symptom" in (site / "index.html").read_text(encoding="utf-8")


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = [site / "index.html", site / "overview/index.html", *site.glob("*/index.html")]
    assert len(pages) > 25
    lost = []
    for page in pages:
        body = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        for target in re.findall(r'(?:href|src)="([^"#]+)', body):
            if not re.match(r"https?:|mailto:", target) and not (page.parent / target).exists():
                lost.append(f"{page.relative_to(site)}: {target}")
    assert lost == []


def test_a_reader_loads_nothing_from_elsewhere(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?:[^"]*"', page) == []
