"""Every command that the documents and results show names a program that is there, and is in words that it takes."""

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

ROOT = Path(__file__).parents[3]
PLACES = ("*.md", "configs/*.md", "docs/*.md", "benchmarks/results/*.md")
PAGES = [path for place in PLACES for path in ROOT.glob(place)]


def shown() -> list[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES).replace("\\\n", " ")
    found = re.findall(r"python -m ((?:launch|benchmarks|demopsd_dist)[\w.]*(?: [^`\n#|>&]*)?)", text)
    return sorted({command.strip() for command in found if " ... " not in command})


class Taken(Exception):
    """The words have been parsed; nothing else shall happen."""


def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(parse)
    def parse_and_stop(*words: Any, **named: Any) -> Any:
        parse(*words, **named)
        raise Taken

    return parse_and_stop


def test_there_are_commands() -> None:
    programs = {command.split()[0] for command in shown()}
    assert len(programs) > 20
    assert {"launch.train", "benchmarks.throughput", "benchmarks.plan"} <= programs


@pytest.mark.parametrize("command", shown())
def test_it_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = shlex.split(command)
    program = importlib.util.find_spec(name)
    assert program, f"no program {name}"
    if not words:  # the name of a program, in a sentence
        return
    module = importlib.import_module(f"{name}.__main__" if program.submodule_search_locations else name)
    for parse in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, parse, stopping(getattr(argparse.ArgumentParser, parse)))
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(Taken):
        module.main()


def test_words_that_are_not_taken_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        test_it_is_taken("benchmarks.plan --roundz 3", monkeypatch)
