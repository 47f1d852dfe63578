"""Commands in the documents and results: each names an existing program and parses."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from launch._command_line import VERBS

ROOT = Path(__file__).parents[3]
GLOBS = ("*.md", "configs/*.md", "docs/*.md", "benchmarks/results/*.md")
WORDS = r"(?:'[^'\n]*'|[^`\n#|>&])*"  # up to the end of the command; quoted words whole
LISTED = [name for name in VERBS if name != "completion"]  # its example is a part of a shell's word
PAGES = [path for pattern in GLOBS for path in ROOT.glob(pattern)]


def documented_commands() -> list[str]:
    """Commands of the pages, each once."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES).replace("\\\n", " ")
    programs = re.findall(rf"python -m ((?:launch|benchmarks|demopsd_dist)[\w.]*(?: {WORDS})?)", text)
    verbs = re.findall(rf"\bdemopsd ((?:{'|'.join(LISTED)})\b(?: {WORDS})?)", text)
    commands = {command.strip() for command in (*programs, *(f"launch.{verb}" for verb in verbs))}
    return sorted(command for command in commands if " ... " not in command)


class ParsedError(Exception):
    """Signal that the arguments were parsed; nothing else runs."""


def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(parse)
    def parse_and_stop(*words: Any, **named: Any) -> Any:
        parse(*words, **named)
        raise ParsedError

    return parse_and_stop


def test_there_are_commands() -> None:
    programs = {command.split()[0] for command in documented_commands()}
    assert len(programs) > 20
    assert {"launch.train", "benchmarks.throughput", "benchmarks.plan"} <= programs


def examples() -> list[str]:
    """Examples that the commands' own help shows."""
    shown = [example for name in LISTED for example in VERBS[name].examples]
    assert len(shown) > len(LISTED)
    return [f"launch.{example.removeprefix('demopsd ').partition(' > ')[0]}" for example in shown]


@pytest.mark.parametrize("command", [*documented_commands(), *examples()])
def test_a_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = shlex.split(command)
    program = importlib.util.find_spec(name)
    assert program, f"no program {name}"
    if not words:  # the name of a program, in a sentence
        return
    module = importlib.import_module(f"{name}.__main__" if program.submodule_search_locations else name)
    for parse in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, parse, stopping(getattr(argparse.ArgumentParser, parse)))
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(ParsedError):
        module.main()


def test_an_unknown_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        test_a_command_parses("benchmarks.plan --roundz 3", monkeypatch)
