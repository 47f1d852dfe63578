"""Training data of several data sets: entries of `data.train` where it is a list."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from demopsd_dist.config.data_settings import MINISCI, SPLIT, DataConfig, FieldNames, Format
from demopsd_dist.util.errors import ConfigError

EXAMPLE = "[{path: a.jsonl, weight: 3}, {path: b.jsonl, weight: 1}]"


@dataclass(frozen=True)
class TrainSet:
    """One of several training sets.

    Attributes:
        label: name in logs, metrics and question ids, different for all sets.
        path: a source, named as for `data.train`.
        weight: its share in the drawn questions is its weight over the sum of all weights.

    The other attributes replace the settings `data.*` of the same name for this set.
    """

    label: str
    path: str
    weight: float
    format: Format
    fields: FieldNames
    system: str | None
    suffix: str


KEYS = tuple(item.name for item in fields(TrainSet) if item.name != "label")


def train_sets(data: DataConfig) -> list[TrainSet]:
    """The training sets where `data.train` is a list; empty where it names one source.

    Raises:
        ConfigError: `data.train` is neither text nor a list of sets, or a set is not valid.
    """
    if isinstance(data.train, str):
        return []
    if not isinstance(data.train, list) or not data.train:
        raise ConfigError(f"data.train={data.train} must be a source, or a list of sets such as {EXAMPLE}.")
    sets = [_train_set(entry, f"data.train[{index}]", data) for index, entry in enumerate(data.train)]
    paths = [one.path for one in sets]
    labels = _labels(paths)
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ConfigError(f"data.train[{index}].path={path} is there twice. Add the weights up in one entry.")
        if labels[index] in labels[:index]:
            raise ConfigError(
                f"data.train[{index}].path={path} has the name {labels[index]} of another set, and ids of questions "
                "begin with it. Rename the file."
            )
    return [TrainSet(**(vars(one) | {"label": label})) for one, label in zip(sets, labels, strict=True)]


def train_text(data: DataConfig) -> str:
    """`data.train` for logs and messages: the source, or the sets with their weights."""
    sets = train_sets(data)
    return " + ".join(f"{one.path} (weight {one.weight:g})" for one in sets) if sets else data.train


def sources_of(data: DataConfig) -> list[str]:
    """All sources that the settings name."""
    train = [one.path for one in train_sets(data)] or [data.train]
    return [*train, *(source for source in (data.test, data.ood) if source not in (None, SPLIT))]


def _train_set(entry: Any, where: str, data: DataConfig) -> TrainSet:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {entry!r}, not a set such as {{path: a.jsonl, weight: 3}}.")
    for name in entry:
        if name not in KEYS:
            near = difflib.get_close_matches(str(name), KEYS, n=1)
            raise ConfigError(f"{where} has no {name}; its keys are {', '.join(KEYS)}." + _did_you_mean(near))
    path = _text(entry, "path", where)
    if not path:
        raise ConfigError(f"{where} has no path. Name its source, as in {{path: a.jsonl, weight: 3}}.")
    if path == SPLIT:
        raise ConfigError(f"{where}.path={SPLIT}: only data.test can be held out. Name a source.")
    if path.startswith("~"):
        raise ConfigError(f"{where}.path={path} would be a folder named ~. Write {os.path.expanduser(path)}.")
    readers = [name for name in entry if name not in ("path", "weight")]
    if path.partition(":")[0] == MINISCI and readers:
        raise ConfigError(f"{where}.{readers[0]} has no effect with path={path}, whose layout is known. Drop it.")
    if path.partition(":")[0] == "gym" and (unread := [name for name in readers if name in ("format", "fields")]):
        raise ConfigError(f"{where}.{unread[0]} has no effect with path={path}, whose layout is known. Drop it.")
    suffix = _text(entry, "suffix", where)
    system = _text(entry, "system", where)
    return TrainSet(
        label="",
        path=path,
        weight=_weight(entry.get("weight", 1.0), where),
        format=_format(entry["format"], where) if "format" in entry else data.format,
        fields=_fields(entry["fields"], where) if "fields" in entry else data.fields,
        system=system if "system" in entry else data.system,
        suffix=data.suffix if suffix is None else suffix,
    )


def _text(entry: dict, name: str, where: str) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}.{name}={value!r} must be text.")
    return value


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where}.weight={value} must be a number greater than 0. Or drop the entry.")
    return float(value)


def _format(value: Any, where: str) -> Format:
    if value not in Format.__members__:
        near = difflib.get_close_matches(str(value), Format.__members__, n=1)
        known = ", ".join(Format.__members__)
        raise ConfigError(f"{where}.format={value} is none of {known}." + _did_you_mean(near))
    return Format[value]


def _fields(value: Any, where: str) -> FieldNames:
    known = asdict(FieldNames())
    if not isinstance(value, dict):
        raise ConfigError(f"{where}.fields={value!r} must name fields, as in {{text: problem, answer: target}}.")
    for name, column in value.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ConfigError(f"{where}.fields has no {name}; it has {', '.join(known)}." + _did_you_mean(near))
        if column is not None and not isinstance(column, str):
            raise ConfigError(f"{where}.fields.{name}={column!r} must be the name of a field.")
    return FieldNames(**value)


def _did_you_mean(near: list[str]) -> str:
    return f" Did you mean {near[0]}?" if near else ""


def _labels(paths: list[str]) -> list[str]:
    """Names of the sources: the file's name without its ending, with its folder's where two have the same."""
    names = [_name(path) for path in paths]
    return [
        f"{Path(path).parent.name}-{name}" if names.count(name) > 1 and Path(path).parent.name else name
        for path, name in zip(paths, names, strict=True)
    ]


def _name(path: str) -> str:
    kind, colon, rest = path.partition(":")
    named = Path(rest).name if kind == "hf" else f"{kind}-{rest}"  # hf:owner/name:subset@split, minisci:validation
    name = named if colon else Path(path).stem
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "set"
