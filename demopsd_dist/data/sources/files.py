"""Records out of JSONL, CSV and Parquet files, and out of `datasets`. What they mean is for the formats to say."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demopsd_dist.data.sources.items import SourceRecord
from demopsd_dist.util.errors import DataError

HUB = "hf:"
_HUB_ID = re.compile(r"hf:(?P<name>[^@:]+)(:(?P<subset>[^@:]+))?(@(?P<split>[\w.-]+))?")
_OWNED = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def records(source: str, key: str, split: str) -> Iterator[SourceRecord]:
    """`key` is the setting that names the source, for messages; `split` that of a hub data set if it names none.

    Raises:
        DataError: the source is missing or unreadable; the message names file and line.
    """
    if source.startswith(HUB):
        return _of_hub(source, f"{key}={source}", split)
    path = Path(source)
    where = f"{key}={path}"
    with _readable(where):
        if not path.is_file():
            raise DataError(
                f"{where}: there is no such file. Give a .jsonl, .parquet or .csv file, `hf:owner/name`, or `minisci`."
            )
    if path.suffix == ".parquet":
        return _of_parquet(path, where)
    return _of_csv(path, where) if path.suffix == ".csv" else _of_jsonl(path, where)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Inside, a file is read as UTF-8 text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}. Convert it first.") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}.") from None


def _of_jsonl(path: Path, where: str) -> Iterator[SourceRecord]:
    with _readable(where), path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                here = f"{where}, line {number}"
                yield SourceRecord(_object(line, here), here, path.stem, number)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}). Each line must be one JSON object.") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(values).__name__}.")
    return values


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{_repeated(name for name, _ in pairs)!r} stands there twice")
    return values


def _repeated(names: Iterable[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _of_csv(path: Path, where: str) -> Iterator[SourceRecord]:
    try:
        with _readable(where), path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            header = reader.fieldnames or []
            if len(set(header)) < len(header):
                raise DataError(f"{where}: two columns are named {_repeated(header)!r}. Rename or remove one.")
            for number, values in enumerate(reader, start=1):
                here = f"{where}, row {number} (line {reader.line_num})"
                if None in values or None in values.values():
                    raise DataError(
                        f"{here}: not as many cells as the {len(header)} of the header. Quote cells "
                        "that hold commas or line breaks."
                    )
                yield SourceRecord(dict(values), here, path.stem, number)
    except csv.Error as error:
        raise DataError(f"{where}: not valid CSV ({error}).") from None


def _of_parquet(path: Path, where: str) -> Iterator[SourceRecord]:
    from datasets import load_dataset

    def rows() -> Iterable[Any]:  # streamed, or a copy of the file would be left in the user's cache
        return load_dataset("parquet", data_files=str(path), split="train", streaming=True)

    return _rows(rows, where, path.stem, " cannot be read as Parquet", "Write it again.")


def _of_hub(source: str, where: str, split: str) -> Iterator[SourceRecord]:
    match = _HUB_ID.fullmatch(source)
    if match is None or not (Path(match["name"]).is_dir() or _OWNED.fullmatch(match["name"])):
        raise DataError(
            f"{where} is not of the form hf:owner/name, hf:owner/name@split or hf:owner/name:subset@split, and no such "
            "folder is there."
        )
    folder = Path(match["name"])
    # A bare name may be that of a reader of `datasets`, which would read the working directory.
    name = str(folder.resolve()) if folder.is_dir() else match["name"]

    def rows() -> Iterable[Any]:
        import datasets

        datasets.disable_progress_bars()
        saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, match["subset"])
        if isinstance(found, datasets.DatasetDict):
            wanted = match["split"] or (next(iter(found)) if len(found) == 1 else split)
            if wanted not in found:
                there = ", ".join(map(str, found))
                raise DataError(f"{where}: there is no split {wanted}; it has {there}. Name one: {source}@{there}.")
            return found[wanted]
        return found

    return _rows(
        rows,
        where,
        folder.name,
        ": the data set cannot be loaded",
        "Check the name and the network, for a gated one `hf auth login`; or give a downloaded file.",
    )


def _rows(
    open_rows: Callable[[], Iterable[Any]], where: str, source: str, failed: str, fix: str
) -> Iterator[SourceRecord]:
    """Whatever is wrong in what others wrote, or on the way to it: exceptions of `datasets` have no common class."""
    try:
        for number, values in enumerate(open_rows(), start=1):
            yield SourceRecord(dict(values), f"{where}, row {number}", source, number)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}{failed} ({_short(error)}). {fix}") from None


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
