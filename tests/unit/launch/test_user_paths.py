"""Paths of the command line: every command expands `~`, as a shell does not after `--out=`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from launch._command_line import user_path

COMMANDS = sorted((Path(__file__).parents[3] / "launch").glob("[a-z]*.py"))


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert [str(user_path(text)) for text in ("~/a.html", "~", "runs/a~b")] == [
        "/home/ann/a.html",
        "/home/ann",
        "runs/a~b",
    ]


def test_no_command_takes_a_plain_path() -> None:
    types = [
        keyword.value.id
        for path in COMMANDS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "type"
        for keyword in [node]
        if isinstance(keyword.value, ast.Name)
    ]
    assert types.count("user_path") > 7
    assert "Path" not in types
