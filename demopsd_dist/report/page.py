"""HTML page of the report: template, style and script from `assets/`, and the data of the runs as inert text.

No text of a run becomes markup: data is in script elements that no browser executes, with `<`, `>` and `&` as JSON
escapes, and the script inserts it as text. The page's Content-Security-Policy forbids loading anything and allows only
the style and the script with the given digests.
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

from demopsd_dist.report import page_data
from demopsd_dist.report.embedded_samples import (
    BLOCK_SAMPLES,
    encode_block,
    evaluated_questions,
    text_block,
    token_block,
)
from demopsd_dist.report.read_run import RunFiles, read_run
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.samples import Row
from demopsd_dist.util.errors import DataError

SCRIPTS = tuple(
    f"{name}.js"
    for name in (
        *("base", "figures", "chart", "curves", "overview", "tokens"),
        *("groups", "answers", "samples", "live", "main"),
    )
)
MAX_SAMPLES, MAX_TOKENS = 10_000, 500_000  # most samples and tokens of a run; with more the page would be slow to open
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Read the run folders and write the page.

    Raises:
        DataError: a folder is not a run folder, or the page cannot be written.
    """
    text = page([read_run(folder) for folder in folders])
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{out}: the report cannot be written there ({error.strerror}). Choose another path with --out."
        ) from None
    return out


def page(runs: Sequence[RunFiles], live: str | None = None) -> str:
    """HTML text of the page.

    Args:
        live: state of the run at a server that the page asks for changes (`live.py`); None for a page of its own.
    """
    style, script = _asset("style.css"), _script()
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if live else "")
    )
    blocks: list[str] = []
    summaries = [page_data.run_data(run) | _add_samples(run, number, blocks) for number, run in enumerate(runs)]
    data = {"runs": summaries, "meanings": page_data.meanings(summaries), "differences": page_data.differences(runs)}
    data |= {"live": live} if live else {}
    title = " and ".join(run["name"] for run in summaries)
    insertions = {
        "policy": policy,
        "title": _markup(title),
        "style": style,
        "data": f'<script type="application/json" id="data">{_inert(data)}</script>\n' + "\n".join(blocks),
        "script": script,
    }
    text = _asset("page.html")
    for name, content in insertions.items():
        before, _, after = text.partition(f"<!--{name}-->")
        text = before + content + after
    return text


def _add_samples(run: RunFiles, number: int, blocks: list[str]) -> dict[str, Any]:
    """Append the run's samples to `blocks`; the counts of samples and the tokens with the most disagreement."""
    index: list[dict[str, Any]] = []
    disagreement = page_data.DisagreementByToken()
    for block, rows in enumerate(_batches(_rows(run) if run.sample_files else iter(()))):
        for row in rows:
            index.append(page_data.index_entry(row))
            disagreement.add(row)
        blocks.append(_block(f"tokens-{number}-{block}", token_block(rows)))
        blocks.append(_block(f"texts-{number}-{block}", text_block(rows)))
    questions = evaluated_questions(run.evaluation_files)
    if questions:
        blocks.append(_block(f"evaluation-{number}", encode_block({"questions": questions}, {})))
    columns = {name: [entry[name] for entry in index] for name in index[0]} if index else {}
    blocks.append(_block(f"index-{number}", encode_block(columns, {})))
    return {
        "samples": len(index),
        "evaluated": len(questions),
        "recorded": sum(samples.count_rows_and_tokens(path)[0] for path in run.sample_files),
        "block_samples": BLOCK_SAMPLES,
        "top_tokens": disagreement.top_tokens(),
    }


def _rows(run: RunFiles) -> Iterator[Row]:
    """Sample rows of the run: all, or an evenly spaced selection of as many as a page may hold."""
    rows, tokens = (sum(counts) for counts in zip(*map(samples.count_rows_and_tokens, run.sample_files), strict=True))
    file_every, row_every = thinning(len(run.sample_files), rows, tokens)
    read = (row for path in run.sample_files[::file_every] for row in samples.read(path))
    for index, row in enumerate(read):
        if is_kept(index, row_every):
            yield row


def thinning(files: int, rows: int, tokens: int) -> tuple[int, float]:
    """Stride over files, and the rows of those files from which one is kept, 1.5 for two of three, that keep the page
    within `MAX_SAMPLES` and `MAX_TOKENS`."""
    share = max(rows / MAX_SAMPLES, tokens / MAX_TOKENS, 1.0)
    file_every = min(int(share), files)
    read = math.ceil(files / file_every)
    return file_every, share * read / files


def is_kept(index: int, row_every: float) -> bool:
    """True for one of `row_every` rows, evenly spaced; the first is kept."""
    return math.ceil(index / row_every) * row_every < index + 1


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BLOCK_SAMPLES)):
        yield batch


def _block(name: str, content: str) -> str:
    return f'<script type="text/plain" id="{name}">{content}</script>'


def _inert(data: Any) -> str:
    """JSON that is safe inside a script element: it cannot close the element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _markup(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"


def _asset(name: str) -> str:
    return files("demopsd_dist.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
