"""Where questions come from: MiniSci, or a JSONL file. Light: nothing but the standard library and numpy."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demopsd_dist.config import MINISCI, DataConfig
from demopsd_dist.data.records import Question
from demopsd_dist.errors import DataError
from demopsd_dist.minisci.tasks import Split, questions

_TEXT_KEYS = ("prompt", "question")
_ID_KEYS = ("id", "idx")
_FIELD_KEYS = ("field", "domain", "dataset")


def sources(data: DataConfig) -> dict[Split, str | None]:
    """Where each split's questions come from."""
    return {"train": data.train, "test": data.test, "ood": data.ood}


def load_questions(data: DataConfig, split: Split) -> list[Question]:
    """The questions of one split.

    Raises:
        DataError: the file is missing, empty, not JSONL, or a record lacks its question or answer; the message names
            file and line.
    """
    source = sources(data)[split]
    if source is None:
        return []
    if source.partition(":")[0] == MINISCI:
        size = data.minisci_train_size if split == "train" else data.minisci_test_size
        try:
            return questions(source.partition(":")[2] or split, size, seed=0)  # type: ignore[arg-type]
        except ValueError as error:
            raise DataError(f"data.minisci_{'train' if split == 'train' else 'test'}_size={size}: {error}") from None
    return read_jsonl(Path(source), f"data.{split}")


def read_jsonl(path: Path, key: str) -> list[Question]:
    """One question a line. `key` is the setting that named the file, for the messages."""
    if not path.is_file():
        raise DataError(f"{key}={path}: there is no such file. Give a .jsonl file, or `{MINISCI}`.")
    found: list[Question] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    found.append(_question(line, f"{key}={path}, line {number}", f"{path.stem}/{number}"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{key}={path} is not UTF-8 text: {error.reason} at byte {error.start}. Convert it first."
        ) from None
    if not found:
        raise DataError(f"{key}={path} holds no record. Give a file with one JSON object a line.")
    _refuse_twins(found, f"{key}={path}")
    return found


def _question(line: str, where: str, default_id: str) -> Question:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}). Each line must be one JSON object.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(record).__name__}.")
    text = _first_string(record, _TEXT_KEYS, where)
    answer = _first_string(record, ("answer",), where)
    assert text is not None
    assert answer is not None
    system = _first_string(record, ("system",), where, needed=False)
    identity = next((str(record[k]) for k in _ID_KEYS if record.get(k) is not None), None)
    return Question(
        id=default_id if identity is None else f"{default_id.rpartition('/')[0]}/{identity}",
        text=text,
        answer=answer,
        field=_first_string(record, _FIELD_KEYS, where, needed=False) or "all",
        system=system,
    )


def _first_string(record: dict[str, Any], keys: Sequence[str], where: str, needed: bool = True) -> str | None:
    for key in keys:
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            hint = (
                " Of a chat, give the system message as 'system' and the user's as 'prompt'." if key == "prompt" else ""
            )
            raise DataError(f"{where}: {key!r} must be text, not {type(value).__name__}.{hint}")
        if value.strip() or not needed:
            return value if value.strip() else None
    if needed:
        raise DataError(f"{where}: the record has no {' or '.join(map(repr, keys))}. Add it or remove the record.")
    return None


def _refuse_twins(found: list[Question], where: str) -> None:
    seen: set[str] = set()
    for question in found:
        if question.id in seen:
            raise DataError(f"{where}: two records have the id {question.id.rpartition('/')[2]!r}. Ids must be unique.")
        seen.add(question.id)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits `count` questions: a permutation that only seed and epoch decide."""
    indices = list(range(count))
    random.Random(f"order/{seed}/{epoch}").shuffle(indices)
    return indices
