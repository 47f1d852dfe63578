"""Files around the code: licence, citation, version, and the checks that a host of the repository runs."""

from __future__ import annotations

import re
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from demopsd_dist import __version__

ROOT = Path(__file__).parents[3]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_version_comes_from_one_place() -> None:
    """Citation, changelog and the installed package have the version of `demopsd_dist/__init__.py`."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert version("demopsd-dist") == __version__, "install the package again: make setup"
    assert str(read_yaml("CITATION.cff")["version"]) == __version__
    headings = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == __version__
    assert f'"{__version__}"' not in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert len(text.splitlines()) > 200
    assert metadata("demopsd-dist")["License"] == read_yaml("CITATION.cff")["license"] == "Apache-2.0"


def test_the_citation_has_what_its_format_needs() -> None:
    citation = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["references"][0]["url"].endswith("2607.02502")


def test_a_host_runs_all_checks() -> None:
    workflow = read_yaml(".github/workflows/check.yml")
    steps = workflow["jobs"]["check"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    python = next(step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert set(metadata("demopsd-dist")["Requires-Python"].split(",")) == {">=3.11", "<3.12"}
    assert python == "3.11"
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_hooks_before_a_commit_run_what_the_check_runs() -> None:
    hooks = read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    for hook in hooks:
        words = hook["entry"].replace(" --force-exclude", "").replace("ruff format", "ruff format --check")
        assert words in makefile, hook["id"]


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[fw]*.yml")), ids=lambda path: path.stem)
def test_a_template_of_an_issue_is_complete(path: Path) -> None:
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(template)
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in template["body"])


def test_types_are_shipped() -> None:
    assert (ROOT / "demopsd_dist" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")
