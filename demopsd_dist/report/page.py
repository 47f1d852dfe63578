"""The page itself: template, style and script from `assets/`, the data of the runs as inert text.

Nothing of a run is ever markup. Data stands in script elements that no browser executes, with `<`, `>` and `&` as JSON
escapes, and the script puts it into the page as text. The policy in the head lets the page load nothing and run only
the style and the script whose digests it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from demopsd_dist.report import page_figures
from demopsd_dist.report.embedded_samples import SAMPLES, packed, text_block, token_block
from demopsd_dist.report.read_run import RunFiles, read_run
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.samples import Row
from demopsd_dist.util.errors import DataError

SCRIPTS = ("base.js", "chart.js", "curves.js", "overview.js", "tokens.js", "samples.js", "main.js")
MOST_SAMPLES, MOST_TOKENS = 10_000, 500_000  # of a run; with more the page would be slow to open
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Read the run folders and write the page.

    Raises:
        DataError: a folder is none of a run; or the page cannot be written there.
    """
    text = page([read_run(folder) for folder in folders])
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: the report cannot be written there ({error.strerror}). Give another --out.") from None
    return out


def page(runs: Sequence[RunFiles]) -> str:
    style, script = _asset("style.css"), _script()
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    blocks: list[str] = []
    drawn = [page_figures.of_run(run) | _samples(run, number, blocks) for number, run in enumerate(runs)]
    data = {"runs": drawn, "meanings": page_figures.meanings(drawn), "differences": page_figures.differences(runs)}
    title = " and ".join(run["name"] for run in drawn)
    parts = {
        "policy": policy,
        "title": _markup(title),
        "style": style,
        "data": f'<script type="application/json" id="data">{_inert(data)}</script>\n' + "\n".join(blocks),
        "script": script,
    }
    text = _asset("page.html")
    for name, part in parts.items():
        before, _, after = text.partition(f"<!--{name}-->")
        text = before + part + after
    return text


def _samples(run: RunFiles, number: int, blocks: list[str]) -> dict[str, Any]:
    """The run's samples go into `blocks`; the answer tells how many there are, and of how many."""
    index: list[dict[str, Any]] = []
    token_recorder = page_figures.MostTellingTokens()
    for place, rows in enumerate(_some_at_once(_rows(run) if run.sample_files else iter(()))):
        for row in rows:
            index.append(page_figures.index_entry(row))
            token_recorder.add(row)
        blocks.append(_block(f"tokens-{number}-{place}", token_block(rows)))
        blocks.append(_block(f"texts-{number}-{place}", text_block(rows)))
    columns = {name: [entry[name] for entry in index] for name in index[0]} if index else {}
    blocks.append(_block(f"index-{number}", packed(columns, {})))
    return {
        "samples": len(index),
        "kept": sum(samples.count_rows_and_tokens(path)[0] for path in run.sample_files),
        "block_samples": SAMPLES,
        "token_recorder": token_recorder.table(),
    }


def _rows(run: RunFiles) -> Iterator[Row]:
    """All, or as many as the page is to hold, evenly over the run."""
    rows, tokens = (sum(counts) for counts in zip(*map(samples.count_rows_and_tokens, run.sample_files), strict=True))
    file_every, row_every = thinning(len(run.sample_files), rows, tokens)
    for path in run.sample_files[::file_every]:
        yield from samples.read(path)[::row_every]


def thinning(files: int, rows: int, tokens: int) -> tuple[int, int]:
    """Of how many files one is taken, and of how many rows in it, so that the page stays within its bounds."""
    share = max(rows / MOST_SAMPLES, tokens / MOST_TOKENS, 1.0)
    file_every = min(int(share), files)
    taken = math.ceil(files / file_every)
    return file_every, math.ceil(share * taken / files)


def _some_at_once(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while some := list(islice(rows, SAMPLES)):
        yield some


def _block(name: str, content: str) -> str:
    return f'<script type="text/plain" id="{name}">{content}</script>'


def _inert(data: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end that."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _markup(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"


def _asset(name: str) -> str:
    return files("demopsd_dist.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
