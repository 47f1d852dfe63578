"""Result files of a benchmark: raw figures and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def write(out: Path, name: str, raw: Any) -> None:
    """Write raw figures to `name.json`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n")


def write_page(out: Path, name: str, report: Sequence[str]) -> str:
    """Write the lines of a report to `name.md`, and return its text."""
    text = "\n".join(report).rstrip() + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    return text


def save(out: Path, name: str, raw: Any, report: Sequence[str]) -> None:
    """Write raw figures to `name.json` and the lines of a report to `name.md`, and print the report."""
    write(out, name, raw)
    print(write_page(out, name, report))
