"""The functions for use from Python: lazy names, and a run that is refused before it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import demopsd_dist
from demopsd_dist import train
from demopsd_dist.from_python import _run_to_its_end
from demopsd_dist.util.errors import ConfigError


def test_names_are_imported_when_they_are_first_used() -> None:
    code = (
        "import sys, demopsd_dist; assert 'torch' not in sys.modules; assert 'demopsd_loss' in dir(demopsd_dist); "
        "from demopsd_dist import *; assert 'torch' in sys.modules; print(demopsd_loss.__module__, train.__module__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.stdout == "demopsd_dist.objective.standalone_loss demopsd_dist.from_python\n", shown.stderr
    with pytest.raises(AttributeError, match="no attribute 'demopsd_los'"):
        _ = demopsd_dist.demopsd_los


def test_a_wrong_setting_is_refused_with_the_message_of_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"no setting learner\.zero_stages.*zero_stage") as refusal:
        train("demo", {"learner.zero_stages": 3})
    assert capfd.readouterr().out == f"error: {refusal.value}\n", "the line of the command is printed too"
    with pytest.raises(ConfigError, match="zero_stage"):
        train({"learner": {"zero_stage": 7}}, show_output=False)
    assert capfd.readouterr().out == ""


def test_a_notebook_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A kernel asks for colours, by which rich would draw a live view into the notebook."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    code = "from rich.console import Console; Console().print('line', style='bold')"
    assert _run_to_its_end([sys.executable, "-c", code], show_output=True) == (0, ["line"])
    assert capfd.readouterr().out == "line\n"


def test_settings_may_be_of_any_kind(tmp_path: Path) -> None:
    """Null, lists, booleans, paths and text reach the config as they are; the missing file is what is refused."""
    settings = {
        "data.ood": None,
        "data.only_levels": ["L3", "no"],
        "deterministic": True,
        "name": "007",
        "data.suffix": " End with ####.",
        "data.system": "'quoted'",
        "data.train": tmp_path / "no such #1 file.jsonl",
    }
    with pytest.raises(ConfigError, match=r"no such #1 file\.jsonl: there is no such file"):
        train("demo", settings, show_output=False)
