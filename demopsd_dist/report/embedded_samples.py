"""Blocks of samples inside the page: compressed, and decoded by the browser when a sample is opened.

A block is a deflated byte string: the length of a JSON header (4 bytes, little-endian), the header, padding to 8 bytes,
the arrays. Values are 16-bit integers with a scale per array: probabilities in steps of 1/65535, values in nats in
steps of 1/65535 of the block's maximum. base64 makes a block safe text in a page.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.run_record import samples
from demopsd_dist.run_record.samples import Row
from demopsd_dist.util.printable import escape_control_chars

BLOCK_SAMPLES = 64
MEASURES = ("rollout_logp", "entropy", "loss", "alpha", "disagreement")
VIEWS = ("student", "reference", "teacher", "target")
TEXTS = ("question", "student_view", "privileged_view", "response", "feedback")
ASKED = ("field", "question", "expected")
MAX_CHARACTERS = 20_000
GROUP_CHARACTERS = 4_000  # of each response in a group
_TOKEN_CHARACTERS = 80
_SCALE_MAX = 65_535


def token_block(rows: Sequence[Row]) -> str:
    """Block with tokens, measures and candidates of samples.

    Arrays: `token` and `candidate` are indices into the header's `texts`; `version`; one for each of `MEASURES` and of
    `VIEWS`. Candidate arrays have `candidates` values a token, padded with zeros.
    """
    texts = _TextTable()
    width = max((len(ids[0]) for row in rows if (ids := row["candidate_ids"])), default=0)
    token = [texts.index(text) for row in rows for text in row["token_texts"]]
    candidate = [
        texts.index(text) for row in rows for texts_C in _padded(row, "candidate_texts", width, "") for text in texts_C
    ]
    arrays: dict[str, NDArray[Any]] = {
        "token": np.array(token, np.uint32),
        "candidate": np.array(candidate, np.uint32),
        "version": np.array([version for row in rows for version in row["versions"]], np.uint32),
    }
    scales, lowest = {}, {}
    for name in MEASURES:
        sign = -1.0 if name == "rollout_logp" else 1.0  # shown as the surprisal
        values = np.nan_to_num(sign * np.concatenate([_measure(row, name) for row in rows]))
        lowest[name] = float(values.min(initial=0.0))  # below 0 for a loss with a negative advantage
        values -= lowest[name]
        scales[name] = float(values.max(initial=0.0)) / _SCALE_MAX or 1.0
        arrays[name] = _rounded(values / scales[name])
    for name in VIEWS:
        logp = [_padded(row, f"{name}_logp", width, -math.inf) for row in rows]
        arrays[name] = _rounded(np.exp(np.concatenate([np.reshape(values, -1) for values in logp])) * _SCALE_MAX)
        scales[name] = 1 / _SCALE_MAX
    header = {
        "texts": texts.texts,
        "candidates": width,
        "lengths": [len(row["token_ids"]) for row in rows],
        "recorded": [[name for name in (*MEASURES, *VIEWS) if _has(row, name)] for row in rows],
        "scales": scales,
        "lowest": lowest,
    }
    return encode_block(header, arrays)


def text_block(rows: Sequence[Row]) -> str:
    """Block with the texts of samples, to read and to search, and the other responses of their groups."""
    return encode_block(
        {name: [_text(row[name]) for row in rows] for name in TEXTS} | {"group": list(map(_group, rows))}, {}
    )


def evaluated_questions(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Recorded questions of each split, with the responses of the first and of the last evaluation."""
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(path.stem.split("-", 2)[2], []).append(path)
    questions: dict[tuple[str, str], dict[str, Any]] = {}
    for split, paths in by_split.items():
        for path in dict.fromkeys([paths[0], paths[-1]]):
            for row in samples.read(path):
                texts = {
                    name: escape_control_chars(row[name], lines=True, max_chars=GROUP_CHARACTERS) for name in ASKED
                }
                entry = questions.setdefault((split, row["prompt_id"]), {"split": split, "evaluations": [], **texts})
                responses = zip(row["texts"], row["rewards"], strict=True)
                entry["evaluations"].append(
                    {
                        "step": row["step"],
                        "responses": [
                            {
                                "text": escape_control_chars(text, lines=True, max_chars=GROUP_CHARACTERS),
                                "reward": float(f"{reward:.4g}"),
                            }
                            for text, reward in responses
                        ],
                    }
                )
    return list(questions.values())


def _group(row: Row) -> list[dict[str, Any]] | None:
    """Responses to the sample's question with their rewards, and whether the teacher saw them; None in older runs."""
    numbers, shown = row.get("group_samples"), row.get("shown_samples") or []
    if numbers is None:
        return None
    return [
        {
            "sample": number,
            "reward": float(f"{reward:.4g}"),
            "text": escape_control_chars(text, lines=True, max_chars=GROUP_CHARACTERS),
            "shown": number in shown,
        }
        for number, reward, text in zip(numbers, row["group_rewards"], row["group_texts"], strict=True)
    ]


def encode_block(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Compressed block as base64 text."""
    layout, chunks, offset = {}, [], 0
    for name, values in arrays.items():
        raw = values.tobytes() + bytes(-values.nbytes % 8)
        layout[name] = [values.dtype.name, offset, len(values)]
        offset += len(raw)
        chunks.append(raw)
    text = json.dumps({**header, "arrays": layout}, ensure_ascii=False).encode()
    text += b" " * (-(4 + len(text)) % 8)
    block = len(text).to_bytes(4, "little") + text + b"".join(chunks)
    return base64.b64encode(zlib.compress(block, 6)).decode("ascii")


class _TextTable:
    """Table of distinct texts."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def index(self, text: str) -> int:
        return self._index.setdefault(text, len(self._index))

    @property
    def texts(self) -> list[str]:
        return [escape_control_chars(text, lines=True, max_chars=_TOKEN_CHARACTERS) for text in self._index]


def _has(row: Row, name: str) -> bool:
    return row[f"{name}_logp" if name in VIEWS else name] is not None


def _measure(row: Row, name: str) -> NDArray[np.float64]:
    values = row[name]
    return np.zeros(len(row["token_ids"])) if values is None else np.asarray(values, np.float64)


def _padded(row: Row, name: str, width: int, filling: Any) -> list[list[Any]]:
    values = row[name]
    if values is None:
        return [[filling] * width for _ in row["token_ids"]]
    return [[*values_C, *[filling] * (width - len(values_C))] for values_C in values]


def _rounded(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.clip(np.rint(np.nan_to_num(values)), 0, _SCALE_MAX).astype(np.uint16)


def _text(text: str | None) -> str | None:
    return None if text is None else escape_control_chars(text, lines=True, max_chars=MAX_CHARACTERS)
