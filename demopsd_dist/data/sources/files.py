"""Records from JSONL, JSON, CSV and Parquet files and from `datasets`; the formats parse them."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from demopsd_dist.config import MINISCI, SPLIT
from demopsd_dist.data.sources.items import SourceRecord
from demopsd_dist.util.errors import DataError

HUB = "hf:"
_HUB_ID = re.compile(r"hf:(?P<name>[^@:]+)(:(?P<subset>[^@:]+))?(@(?P<split>[\w.-]+))?")
_SPACE = re.compile(r"[ \t\r\n]*")
_OTHER_FORMS = {
    ".gz": "unpack it",
    ".zip": "unpack it",
    ".bz2": "unpack it",
    ".xz": "unpack it",
    ".zst": "unpack it",
    ".tsv": "write it as .csv, with commas",
    ".xlsx": "write it as .csv",
    ".xls": "write it as .csv",
    ".arrow": "write it as .parquet, or name the folder that `save_to_disk` wrote as hf:FOLDER",
    ".yaml": "write it as .jsonl, one record in each line",
    ".yml": "write it as .jsonl, one record in each line",
    ".pkl": "write it as .jsonl or .parquet",
}
"""Remedy for a file of a form that is not read, by the ending of its name."""
_OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read_records(source: str, key: str, split: str) -> Iterator[SourceRecord]:
    """Records of a source, read one by one.

    Args:
        key: the setting that names the source, for messages.
        split: split of a hub data set whose source names none.

    Raises:
        DataError: the source is missing or unreadable; the message names file and line.
    """
    if source.startswith(HUB):
        return _read_hub(source, f"{key}={source}", split)
    path = Path(source)
    where = f"{key}={path}"
    with _read_errors(where):
        if not path.is_file():
            raise DataError(f"{where}: there is no such file{_nearest(path, key)}")
    ending = path.suffix.lower()
    if ending in _OTHER_FORMS:
        raise DataError(f"{where}: a {ending} file is not read; {_OTHER_FORMS[ending]}.")
    if ending == ".parquet":
        return _read_parquet(path, where)
    if ending == ".csv":
        return _read_csv(path, where)
    return _read_json_array(path, where) if _begins_array(path, where) else _read_jsonl(path, where)


def _nearest(path: Path, key: str) -> str:
    """End of the message about a missing file: the folder that a relative path starts from, the nearest name of a file
    beside it or of another kind of source, or else the kinds that there are."""
    start = "" if path.is_absolute() else f" below {Path.cwd()}"
    is_setting = key.startswith("data.")
    words = [MINISCI, *([SPLIT] if key == "data.test" else [])] if is_setting else []
    beside = {file.stem: str(file) for file in path.parent.glob("*") if file.is_file()} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, [*words, *beside], n=1, cutoff=0.75)
    if near:
        return f"{start}. Did you mean {beside.get(near[0], near[0])}?"
    others = ", `hf:owner/name`, or `minisci`" if is_setting else ", or `hf:owner/name`"
    return f"{start}. Give a .jsonl, .json, .parquet or .csv file{others}."


@contextmanager
def _read_errors(where: str) -> Iterator[None]:
    """Context in which errors of reading a UTF-8 file become a DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}. Convert it first.") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}. Check its name and rights.") from None


def _read_jsonl(path: Path, where: str) -> Iterator[SourceRecord]:
    with _read_errors(where), path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                here = f"{where}, line {number}"
                yield SourceRecord(_json_object(line, here), here, path.stem, number)


def _begins_array(path: Path, where: str) -> bool:
    """True where the first character that is no white space opens a JSON array."""
    with _read_errors(where), path.open(encoding="utf-8-sig") as lines:
        return next((line.lstrip()[0] for line in lines if line.strip()), "") == "["


def _read_json_array(path: Path, where: str) -> Iterator[SourceRecord]:
    """Records of a file that is one JSON array, each with the line on which it begins."""
    with _read_errors(where):
        text = path.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder(object_pairs_hook=_refuse_repeated_names)
    position, counted, line = _after_space(text, text.index("[") + 1), 0, 1
    number = 1
    if text[position : position + 1] == "]":
        number, position = 0, _after_space(text, position + 1)
    while number:
        line, counted = line + text.count("\n", counted, position), position
        here = f"{where}, line {line}"
        try:
            values, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            wrong = _what_is_wrong(error)
            raise DataError(f"{here}: not valid JSON ({wrong}). Each element must be one JSON object.") from None
        if not isinstance(values, dict):
            raise DataError(
                f"{here}: element {number} must be a JSON object, not {type(values).__name__}. Mend or remove it."
            )
        yield SourceRecord(values, here, path.stem, number)
        end = _after_space(text, end)
        if text[end : end + 1] not in (",", "]"):
            raise DataError(
                f"{here}: element {number} of the JSON array must be followed by a comma or its end. Add it."
            )
        number = number + 1 if text[end] == "," else 0
        position = _after_space(text, end + 1)
    if position < len(text):
        line += text.count("\n", counted, position)
        raise DataError(f"{where}, line {line}: there is text after the end of the JSON array. Remove it.")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _json_object(line: str, where: str) -> dict[str, Any]:
    line = line.strip()
    try:
        values = json.loads(line, object_pairs_hook=_refuse_repeated_names)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and (
            error.pos >= len(line) or error.msg.startswith("Unterminated string")
        ):
            raise DataError(
                f"{where}: not valid JSON: the line ends within its record, after {line[-30:]!r}. Complete it or take "
                "it out."
            ) from None
        raise DataError(
            f"{where}: not valid JSON ({_what_is_wrong(error)}). Each line must be one JSON object."
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(values).__name__}. Mend or remove the line.")
    return values


def _what_is_wrong(error: ValueError | RecursionError) -> str:
    """The parser's message, with the place in the line."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' delimiter')} at character {error.colno}"
    return str(error)


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{_repeated(name for name, _ in pairs)!r} occurs twice")
    return values


def _repeated(names: Iterable[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _read_csv(path: Path, where: str) -> Iterator[SourceRecord]:
    line = 0
    try:
        with _read_errors(where), path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            header = reader.fieldnames or []
            if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
                raise DataError(
                    f"{where}: its header has no comma but {header[0].count(other)} {other!r}. Write it with commas."
                )
            if len(set(header)) < len(header):
                raise DataError(f"{where}: two columns are named {_repeated(header)!r}. Rename or remove one.")
            for number, values in enumerate(reader, start=1):
                line = reader.line_num
                here = f"{where}, row {number} (line {reader.line_num})"
                if None in values or None in values.values():
                    raise DataError(
                        f"{here}: not as many cells as the {len(header)} of the header. Quote cells "
                        "that hold commas or line breaks."
                    )
                yield SourceRecord(dict(values), here, path.stem, number)
    except csv.Error as error:
        limit = csv.field_size_limit()
        fix = "Close each quote, and double those in a cell."
        if str(limit) in str(error):
            fix = f"Close each quote; write records with cells of more than {limit:,} characters as .jsonl."
        raise DataError(f"{where}, line {line + 1} or after: not valid CSV ({error}). {fix}") from None


def _read_parquet(path: Path, where: str) -> Iterator[SourceRecord]:
    from datasets import load_dataset

    def open_rows() -> Iterable[Any]:  # streamed, or a copy of the file would be left in the user's cache
        return load_dataset("parquet", data_files=str(path), split="train", streaming=True)

    return _loaded_rows(open_rows, where, path.stem, " cannot be read as Parquet", "Write it again.")


def _read_hub(source: str, where: str, split: str) -> Iterator[SourceRecord]:
    match = _HUB_ID.fullmatch(source)
    if match is None or not (Path(match["name"]).is_dir() or _OWNER_AND_NAME.fullmatch(match["name"])):
        raise DataError(
            f"{where} is not of the form hf:owner/name, hf:owner/name@split or hf:owner/name:subset@split, and no such "
            "folder is there. Correct it, or give the path of a file."
        )
    folder = Path(match["name"])
    # A relative folder name may also name a builder of `datasets`, which would read the working directory.
    name = str(folder.resolve()) if folder.is_dir() else match["name"]

    def open_rows() -> Iterable[Any]:
        import datasets

        datasets.disable_progress_bars()
        saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        if saved and match["subset"]:
            raise DataError(
                f"{where}: a folder that `save_to_disk` wrote has no subsets. Leave :{match['subset']} out."
            )
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, match["subset"])
        if isinstance(loaded, datasets.DatasetDict):
            chosen = match["split"] or (next(iter(loaded)) if len(loaded) == 1 else split)
            if chosen not in loaded:
                splits = ", ".join(map(str, loaded))
                raise DataError(f"{where}: there is no split {chosen}; it has {splits}. Name one: {source}@{splits}.")
            return loaded[chosen]
        if match["split"] not in (None, str(loaded.split)):
            raise DataError(
                f"{where}: the folder holds one set of records, whose split is {loaded.split or 'not named'}. Leave "
                f"@{match['split']} out, or save all splits as a DatasetDict."
            )
        return loaded

    return _loaded_rows(
        open_rows,
        where,
        folder.name,
        ": the data set cannot be loaded",
        "Check the name and the network, for a gated one `hf auth login`; or give a downloaded file.",
    )


def _loaded_rows(
    open_rows: Callable[[], Iterable[Any]], where: str, source: str, failed: str, fix: str
) -> Iterator[SourceRecord]:
    """Records of rows that `datasets` loads.

    Args:
        failed: words of the error message, after `where`.
        fix: last sentence of the error message.
    """
    try:
        rows = open_rows()
        features = getattr(rows, "features", None) or {}
        for number, values in enumerate(rows, start=1):
            shortest = {name: _shortest_digits(value, features.get(name)) for name, value in values.items()}
            yield SourceRecord(shortest, f"{where}, row {number}", source, number)
    except DataError:
        raise
    except Exception as error:  # exceptions of `datasets` and the network have no common class
        raise DataError(f"{where}{failed} ({_first_line(error)}). {fix}") from None


def _shortest_digits(value: Any, feature: Any) -> Any:
    """The value with each float16 and float32 as the number of the fewest digits that the column tells apart: 0.1
    instead of 0.10000000149011612.

    Args:
        feature: type of the column as `datasets` has it; None where it is unknown.
    """
    if isinstance(value, dict) and isinstance(feature, dict):
        return {name: _shortest_digits(inner, feature.get(name)) for name, inner in value.items()}
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
        return [_shortest_digits(element, inner) for element in value]
    kind = getattr(feature, "dtype", None)
    if isinstance(value, float) and kind in ("float16", "float32"):
        return float(str(np.dtype(kind).type(value)))
    return value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
