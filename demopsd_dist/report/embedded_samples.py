"""Samples as the page holds them: small, and unpacked only when looked at.

A block has some samples. It is a deflated string of bytes: the length of a JSON header (4 bytes, little-endian), the
header, padding to 8 bytes, arrays. Values lie in arrays of 16-bit whole numbers, each with its scale: a probability to
1/65535, a figure in nats to 1/65535 of the block's largest. base64 makes a block safe text in a page.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.run_record.samples import Row
from demopsd_dist.util.printable import escape_control_chars

SAMPLES = 64  # of a block
FIGURES = ("rollout_logp", "entropy", "loss", "alpha", "disagreement")
VIEWS = ("student", "reference", "teacher", "target")
TEXTS = ("student_view", "privileged_view", "response", "feedback")
MOST_CHARACTERS = 20_000
_TOKEN_CHARACTERS = 80
_FULL = 65_535


def token_block(rows: Sequence[Row]) -> str:
    """Tokens, figures and candidates of some samples.

    Arrays: `token` and `candidate` are places in the header's `texts`; `version`; one for each of `FIGURES` and of
    `VIEWS`. Those of candidates have `candidates` values a token, where a sample has fewer, zeros.
    """
    texts = _Texts()
    width = max((len(ids[0]) for row in rows if (ids := row["candidate_ids"])), default=0)
    token = [texts.place(text) for row in rows for text in row["token_texts"]]
    candidate = [
        texts.place(text) for row in rows for texts_C in _padded(row, "candidate_texts", width, "") for text in texts_C
    ]
    arrays: dict[str, NDArray[Any]] = {
        "token": np.array(token, np.uint32),
        "candidate": np.array(candidate, np.uint32),
        "version": np.array([version for row in rows for version in row["versions"]], np.uint32),
    }
    scales = {}
    for name in FIGURES:
        values = np.concatenate([np.abs(_figure(row, name)) for row in rows])
        scales[name] = float(values.max(initial=0.0)) / _FULL or 1.0
        arrays[name] = _rounded(values / scales[name])
    for name in VIEWS:
        logp = [_padded(row, f"{name}_logp", width, -math.inf) for row in rows]
        arrays[name] = _rounded(np.exp(np.concatenate([np.reshape(part, -1) for part in logp])) * _FULL)
        scales[name] = 1 / _FULL
    header = {
        "texts": texts.texts,
        "candidates": width,
        "lengths": [len(row["token_ids"]) for row in rows],
        "there": [[name for name in (*FIGURES, *VIEWS) if _has(row, name)] for row in rows],
        "scales": scales,
    }
    return packed(header, arrays)


def text_block(rows: Sequence[Row]) -> str:
    """What there is to read of some samples, and to search."""
    asked = [row["question"] for row in rows]
    header = {name: [_text(row[name]) for row in rows] for name in TEXTS}
    return packed(header | {"question": [_text(text) for text in asked]}, {})


def packed(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    places, parts, offset = {}, [], 0
    for name, values in arrays.items():
        raw = values.tobytes() + bytes(-values.nbytes % 8)
        places[name] = [values.dtype.name, offset, len(values)]
        offset += len(raw)
        parts.append(raw)
    text = json.dumps({**header, "arrays": places}, ensure_ascii=False).encode()
    text += b" " * (-(4 + len(text)) % 8)
    whole = len(text).to_bytes(4, "little") + text + b"".join(parts)
    return base64.b64encode(zlib.compress(whole, 6)).decode("ascii")


class _Texts:
    """Each text once."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}

    def place(self, text: str) -> int:
        return self._place.setdefault(text, len(self._place))

    @property
    def texts(self) -> list[str]:
        return [escape_control_chars(text, lines=True, max_chars=_TOKEN_CHARACTERS) for text in self._place]


def _has(row: Row, name: str) -> bool:
    return row[f"{name}_logp" if name in VIEWS else name] is not None


def _figure(row: Row, name: str) -> NDArray[np.float64]:
    values = row[name]
    return np.zeros(len(row["token_ids"])) if values is None else np.asarray(values, np.float64)


def _padded(row: Row, name: str, width: int, filling: Any) -> list[list[Any]]:
    values = row[name]
    if values is None:
        return [[filling] * width for _ in row["token_ids"]]
    return [[*values_C, *[filling] * (width - len(values_C))] for values_C in values]


def _rounded(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.clip(np.rint(np.nan_to_num(values)), 0, _FULL).astype(np.uint16)


def _text(text: str | None) -> str | None:
    return None if text is None else escape_control_chars(text, lines=True, max_chars=MOST_CHARACTERS)
