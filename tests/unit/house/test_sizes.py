"""Sizes: folders, files and functions that can be read in one sitting."""

from __future__ import annotations

import ast
from collections import Counter

from tests.unit.house.source_files import ALL_ROOMS, PRODUCTION, python_files, relative, syntax_tree

FILES_IN_A_FOLDER = 14
FILES_IN_LAUNCH = 27
"""One file a command and one a helper, all of them in the folder that `python -m launch.NAME` demands."""
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60


def test_a_folder_has_about_a_dozen_files() -> None:
    files = [path for path in python_files(*ALL_ROOMS) if path.name != "__init__.py"]
    counts = Counter(relative(path.parent) for path in files)
    limits = {"launch": FILES_IN_LAUNCH}
    assert {name: count for name, count in counts.items() if count > limits.get(name, FILES_IN_A_FOLDER)} == {}


def test_a_file_can_be_read_in_one_sitting() -> None:
    lines = {relative(path): len(path.read_text("utf-8").splitlines()) for path in python_files(*ALL_ROOMS)}
    assert {name: count for name, count in lines.items() if count > LINES_OF_A_FILE} == {}


def test_a_function_fits_one_screen() -> None:
    lines = {
        f"{relative(path)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in python_files(*PRODUCTION)
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lines.items() if count > LINES_OF_A_FUNCTION} == {}
