"""Source files of the project and the names in them, for the tests that read the code instead of running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PRODUCTION = ("demopsd_dist", "workers", "launch", "benchmarks")
ALL_ROOMS = (*PRODUCTION, "tests")


def python_files(*rooms: str) -> list[Path]:
    """Python files below the rooms, given as paths such as `workers/learner`; a missing room is an error."""
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    assert files, f"no Python files in {rooms}: the room has moved"
    return files


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also inside functions; imports for type checkers are left out."""
    tree = syntax_tree(path)
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
            assert node.level == 0, f"{relative(path)}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    """Whether a dotted name is the package or a part of it."""
    return name == package or name.startswith(package + ".")


def class_names(path: Path) -> Iterator[str]:
    return (node.name for node in ast.walk(syntax_tree(path)) if isinstance(node, ast.ClassDef))
