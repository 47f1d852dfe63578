"""Doors between the rooms: which room may import which, read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.unit.house.source_files import (
    ALL_ROOMS,
    PRODUCTION,
    ROOT,
    class_names,
    imported_names,
    python_files,
    relative,
    syntax_tree,
    within,
)

ENGINES = ("ray", "vllm", "deepspeed")
OUTER_ROOMS = ("launch", "benchmarks", "tests")
TRAINING_OPEN_TO_WORKERS = ("demopsd_dist.training.roles", "demopsd_dist.training.schedule")
"""The Protocols that actors implement, and the learning rate of a step; the loop is the driver's alone."""

LIBRARY_DOORS = {
    "util": (),
    "config": ("util",),
    "data": ("config", "minisci", "util"),
    "minisci": ("data", "util"),
    "models": ("config", "data", "minisci", "util"),
    "run_record": ("config", "data", "methods", "models", "training.evaluate", "util"),
    "planning": ("config", "data", "methods", "minisci", "models", "util"),
    "report": ("run_record", "util"),
    "training": ("config", "data", "methods", "models", "objective", "run_record", "util"),
}
"""Rooms of demopsd_dist that each of its rooms may import. `training` imports `objective` in the leakage probe alone;
`run_record` imports the record of an evaluation, which it writes down."""


def offenders(paths: Iterable[Path], *packages: str) -> list[str]:
    """Imports of any of the packages, one line each."""
    return [
        f"{relative(path)} imports {name}"
        for path in paths
        for name in imported_names(path)
        if any(within(name, package) for package in packages)
    ]


def strangers(paths: Iterable[Path], inside: str, *allowed: str) -> list[str]:
    """Imports from package `inside` that are none of the allowed packages, one line each."""
    return [
        f"{relative(path)} imports {name}"
        for path in paths
        for name in imported_names(path)
        if within(name, inside) and name != inside and not any(within(name, package) for package in allowed)
    ]


def test_objective_imports_torch_and_itself() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    imports = [
        f"{relative(path)} imports {name}"
        for path in python_files("demopsd_dist/objective")
        for name in imported_names(path)
        if name.partition(".")[0] not in allowed and not within(name, "demopsd_dist.objective")
    ]
    assert imports == []


def test_data_never_imports_objective_or_torch() -> None:
    assert offenders(python_files("demopsd_dist/data"), "demopsd_dist.objective", "torch") == []


@pytest.mark.parametrize("room", LIBRARY_DOORS)
def test_a_room_of_the_library_imports_what_its_door_allows(room: str) -> None:
    allowed = [f"demopsd_dist.{name}" for name in (room, *LIBRARY_DOORS[room])]
    assert strangers(python_files(f"demopsd_dist/{room}"), "demopsd_dist", *allowed) == []


def test_every_room_of_the_library_has_a_door() -> None:
    folders = {path.parent.name for path in (ROOT / "demopsd_dist").glob("*/__init__.py")}
    assert folders == {*LIBRARY_DOORS, "objective"}


def test_planning_needs_no_torch() -> None:
    assert offenders(python_files("demopsd_dist/planning"), "torch", "transformers") == []


def test_library_has_no_engine_and_no_outer_room() -> None:
    assert offenders(python_files("demopsd_dist"), *ENGINES, "workers", *OUTER_ROOMS) == []


def test_training_needs_no_tensors_but_in_the_leakage_probe() -> None:
    files = [path for path in python_files("demopsd_dist/training") if path.name != "leakage_probe.py"]
    names = {path.stem for path in files}
    assert names >= {"loop", "pipelining", "evaluate", "roles", "step_batch"}
    assert offenders(files, "torch", "transformers", "demopsd_dist.objective") == []


def test_workers_import_neither_the_loop_nor_the_outer_rooms() -> None:
    files = python_files("workers")
    assert strangers(files, "demopsd_dist.training", *TRAINING_OPEN_TO_WORKERS) == []
    assert offenders(files, "demopsd_dist.testing", *OUTER_ROOMS) == []


def test_nobody_imports_launch_benchmarks_or_tests() -> None:
    assert offenders(python_files("launch"), "benchmarks", "tests", *ENGINES) == []
    assert offenders(python_files("benchmarks"), "tests") == []


def test_launch_imports_library_and_workers() -> None:
    names = [name for path in python_files("launch") for name in imported_names(path)]
    assert any(within(name, "workers") for name in names)
    assert any(within(name, "demopsd_dist.training") for name in names)


@pytest.mark.parametrize(
    ("engine", "homes"),
    [
        (
            "vllm",
            {"workers/rollout/worker.py", "workers/rollout/detokenizer.py", "workers/rollout/vllm_weights.py"},
        ),
        (
            "deepspeed",
            {
                "workers/learner/worker.py",
                "workers/learner/saving/checkpoint.py",
                "workers/learner/saving/moments.py",
                "workers/learner/zero.py",
            },
        ),
    ],
)
def test_an_engine_is_imported_in_its_own_files(engine: str, homes: set[str]) -> None:
    assert {relative(path) for path in python_files("workers") if offenders([path], engine)} == homes


def remote_signatures(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Public methods of the actor class in a file, each with the names in its annotations."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Worker"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    arguments = [*method.args.args, *method.args.kwonlyargs]
                    annotations = [argument.annotation for argument in arguments] + [method.returns]
                    parts = [part for annotation in annotations if annotation for part in ast.walk(annotation)]
                    names = {part.id for part in parts if isinstance(part, ast.Name)}
                    yield f"{node.name}.{method.name}", names


def test_tensors_cross_a_process_inside_a_record_alone() -> None:
    """Remote methods take and return records of `data/records.py` and `workers/weights`, no types of torch or numpy."""
    signatures = 0
    for role in ("rollout", "teacher", "learner"):
        path = ROOT / "workers" / role / "worker.py"
        array_names = {
            alias.asname or alias.name
            for node in ast.walk(syntax_tree(path))
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("torch", "numpy")
            for alias in node.names
        }
        for method, names in remote_signatures(path):
            signatures += 1
            assert not names & {*array_names, "np", "torch"}, f"{relative(path)}: {method} passes a bare tensor"
    assert signatures > 15


ROLE_FOLDERS = {f"workers/{role}" for role in ("rollout", "teacher", "learner")}


def file_names() -> dict[str, list[Path]]:
    """Files by name, without those that may repeat: package files, the worker and the group of each role, and commands
    of `launch/` named as what they run."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in python_files(*ALL_ROOMS):
        role_file = path.name in ("worker.py", "group.py") and relative(path.parent) in ROLE_FOLDERS
        command = path.parent == ROOT / "launch" and not path.name.startswith("_")
        if path.name not in ("__init__.py", "__main__.py", "conftest.py") and not role_file and not command:
            files[path.name].append(path)
    return files


def test_no_file_name_stands_twice() -> None:
    assert {name: [relative(path) for path in paths] for name, paths in file_names().items() if len(paths) > 1} == {}


def test_no_class_name_stands_twice() -> None:
    """In tests a name may repeat between two tests, never one of production code."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in python_files(*PRODUCTION):
        for name in class_names(path):
            homes[name].append(relative(path))
    for path in python_files("tests"):
        for name in set(class_names(path)) & set(homes):
            homes[name].append(relative(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def patched_names(path: Path) -> Iterator[str]:
    """Targets of `monkeypatch.setattr` and `monkeypatch.delattr` in a file, with the module that they come from."""
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("monkeypatch.setattr", "monkeypatch.delattr"):
            target = ast.unparse(node.args[0]).strip("'\"")
            name, _, rest = target.partition(".")
            yield f"{homes.get(name, name)}.{rest}"


def test_no_test_patches_the_project() -> None:
    """Library functions may be replaced, such as `shutil.disk_usage`; code of the project has hooks instead."""
    targets = {relative(path): list(patched_names(path)) for path in python_files("tests")}
    assert any(targets.values())
    projects = {path: [name for name in names if name.startswith(PRODUCTION)] for path, names in targets.items()}
    assert {path: names for path, names in projects.items() if names} == {}


def test_the_wheel_ships_the_library_alone() -> None:
    from setuptools import find_packages  # type: ignore[import-untyped]

    assert 'find_packages(include=["demopsd_dist", "demopsd_dist.*"])' in (ROOT / "setup.py").read_text()
    shipped = find_packages(str(ROOT), include=["demopsd_dist", "demopsd_dist.*"])
    assert "demopsd_dist.objective" in shipped
    assert {name.partition(".")[0] for name in shipped} == {"demopsd_dist"}
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} <= set(ALL_ROOMS)
