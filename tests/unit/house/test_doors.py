"""The rooms and their doors: who may import whom. Read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("demopsd_dist", "workers", "launch", "benchmarks")
ENGINES = {"ray", "vllm", "deepspeed"}


def modules(*parts: str) -> list[Path]:
    return sorted(ROOT.joinpath(*parts).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also inside functions; those for type checkers alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def offenders(paths: list[Path], *packages: str) -> list[str]:
    assert paths, "no files to look at: the room has moved"
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if any(within(name, package) for package in packages)
    ]


def test_objective_imports_torch_and_itself() -> None:
    allowed = ("torch", "math", "dataclasses", "typing", "collections", "__future__", "demopsd_dist.objective")
    found = [
        f"{path.name} imports {name}"
        for path in modules("demopsd_dist", "objective")
        for name in imports(path)
        if not any(within(name, package) for package in allowed)
    ]
    assert found == []


def test_data_never_imports_objective() -> None:
    assert offenders(modules("demopsd_dist", "data"), "demopsd_dist.objective", "torch") == []


def test_planning_needs_no_torch() -> None:
    assert offenders(modules("demopsd_dist", "planning"), "torch", "transformers", "demopsd_dist.objective") == []


def test_library_has_no_engine_and_no_outer_room() -> None:
    assert offenders(modules("demopsd_dist"), *ENGINES, "workers", "launch", "benchmarks", "tests") == []


@pytest.mark.parametrize("name", ["driver", "queue", "evaluate", "roles"])
def test_driver_knows_roles_and_data_only(name: str) -> None:
    assert offenders([ROOT / "demopsd_dist" / f"{name}.py"], "torch", "transformers", "demopsd_dist.objective") == []


def test_workers_never_import_the_driver() -> None:
    assert (
        offenders(
            modules("workers"), "demopsd_dist.training.loop", "demopsd_dist.training.prefetch", "demopsd_dist.testing"
        )
        == []
    )


def test_nobody_imports_launch_benchmarks_or_tests() -> None:
    inner = modules("demopsd_dist") + modules("workers")
    assert offenders(inner, "launch", "benchmarks", "tests") == []
    assert offenders(modules("launch"), "benchmarks", "tests", *ENGINES) == []


@pytest.mark.parametrize("engine", ["vllm", "deepspeed"])
def test_an_engine_is_named_in_its_own_files_alone(engine: str) -> None:
    homes = {"vllm": {"rollout.py", "vllm_transfer.py"}, "deepspeed": {"learner.py", "learner_state.py", "zero.py"}}
    found = {path.name for path in modules("workers") if offenders([path], engine)}
    assert found == homes[engine]


def test_files_can_be_read_in_one_sitting() -> None:
    files = [path for room in (*ROOMS, "tests") for path in modules(room)]
    assert {str(path.relative_to(ROOT)): count for path in files if (count := lines(path)) > 400} == {}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_wheel_ships_the_library_alone() -> None:
    from setuptools import find_packages  # type: ignore[import-untyped]

    assert 'find_packages(include=["demopsd_dist", "demopsd_dist.*"])' in (ROOT / "setup.py").read_text()
    shipped = find_packages(str(ROOT), include=["demopsd_dist", "demopsd_dist.*"])
    assert "demopsd_dist.objective" in shipped
    assert {name.partition(".")[0] for name in shipped} == {"demopsd_dist"}
    assert {p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()} <= {*ROOMS, "tests"}
