"""Where a benchmark leaves what it found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def write(out: Path, name: str, raw: Any) -> None:
    """Raw figures as `name.json`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n")


def save(out: Path, name: str, raw: Any, report: Sequence[str]) -> None:
    """Raw figures as `name.json`, the lines of a report as `name.md` and on the console."""
    text = "\n".join(report).rstrip() + "\n"
    write(out, name, raw)
    (out / f"{name}.md").write_text(text)
    print(text)
