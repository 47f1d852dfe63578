"""The built wheel trains: in an environment with the packages of its extra [cpu] and in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.house.built_package import build, environment_with

pytestmark = [pytest.mark.real, pytest.mark.long]


def test_the_demo_trains_from_an_installed_wheel(tmp_path: Path) -> None:
    wheel, _ = build(tmp_path)
    commands = environment_with(wheel, tmp_path / "environment", ("cpu",))
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("launch", "workers"):  # other packages of these names, in the working folder
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    words = ["steps=2", "data.minisci_test_size=16", "data.ood=null", "evaluation.at_start=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        [commands / "demopsd", "train", "demo", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "runs" / "demo" / "summary.json").read_text())
    assert summary["versions"]["demopsd-dist"]
    assert summary["commit"] is None
    assert (folder / "runs" / "demo" / "student" / "model.safetensors").is_file()
