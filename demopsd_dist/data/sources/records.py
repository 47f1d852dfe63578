"""Records out of JSONL, CSV and Parquet files, and out of `datasets`. What they mean is for the formats to say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from demopsd_dist.data.sources.items import Record
from demopsd_dist.errors import DataError

HUB = "hf:"
_HUB_ID = re.compile(r"hf:(?P<name>[^@:]+)(:(?P<subset>[^@:]+))?(@(?P<split>[\w.-]+))?")


def records(source: str, key: str, split: str) -> Iterator[Record]:
    """`key` is the setting that names the source, for messages; `split` that of a hub data set if it names none.

    Raises:
        DataError: the source is missing or unreadable; the message names file and line.
    """
    if source.startswith(HUB):
        return _of_hub(source, f"{key}={source}", split)
    path = Path(source)
    if not path.is_file():
        raise DataError(
            f"{key}={path}: there is no such file. Give a .jsonl, .parquet or .csv file, `hf:owner/name`, or `minisci`."
        )
    where = f"{key}={path}"
    if path.suffix == ".parquet":
        return _of_parquet(path, where)
    return _of_csv(path, where) if path.suffix == ".csv" else _of_jsonl(path, where)


def _of_jsonl(path: Path, where: str) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    here = f"{where}, line {number}"
                    yield Record(_object(line, here), here, path.stem, number)
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}). Each line must be one JSON object.") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(values).__name__}.")
    return values


def _of_csv(path: Path, where: str) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            for number, values in enumerate(reader, start=1):
                here = f"{where}, row {number} (line {reader.line_num})"
                if None in values or None in values.values():
                    raise DataError(
                        f"{here}: not as many cells as the {len(reader.fieldnames or [])} of the header. Quote cells "
                        "that hold commas or line breaks."
                    )
                yield Record(dict(values), here, path.stem, number)
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except csv.Error as error:
        raise DataError(f"{where}: not valid CSV ({error}).") from None


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}. Convert it first.")


def _of_parquet(path: Path, where: str) -> Iterator[Record]:
    from datasets import load_dataset

    try:  # streamed, or a copy of the file would be left in the user's cache
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from _rows(rows, where, path.stem)
    except DataError:
        raise
    except Exception as error:  # whatever is wrong in a file of others: the reader's exceptions have no common class
        raise DataError(f"{where} cannot be read as Parquet ({_short(error)}). Write it again.") from None


def _of_hub(source: str, where: str, split: str) -> Iterator[Record]:
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise DataError(f"{where} is not of the form hf:owner/name, hf:owner/name@split or hf:owner/name:subset@split.")
    name, subset = match["name"], match["subset"]
    import datasets

    datasets.disable_progress_bars()
    try:
        saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, subset)
    except Exception as error:  # network, permission, name, contents: no common class
        raise DataError(
            f"{where}: the data set cannot be loaded ({_short(error)}). Check the name and the network, for a gated "
            "one `hf auth login`; or give a downloaded file."
        ) from None
    if isinstance(found, datasets.DatasetDict):
        wanted = match["split"] or (next(iter(found)) if len(found) == 1 else split)
        if wanted not in found:
            there = ", ".join(map(str, found))
            raise DataError(f"{where}: there is no split {wanted}; it has {there}. Name one: {HUB}{name}@{there}.")
        found = found[wanted]
    return _rows(found, where, Path(name).name)


def _rows(rows: Iterable[Any], where: str, source: str) -> Iterator[Record]:
    for number, values in enumerate(rows, start=1):
        yield Record(dict(values), f"{where}, row {number}", source, number)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
