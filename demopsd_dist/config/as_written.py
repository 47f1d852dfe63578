"""Keep text settings as the user wrote them; YAML turns `off`, `007`, `1e5` and `12:30` into other values."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

from demopsd_dist.util.errors import ConfigError

_NULLS = ("", "~", "null", "Null", "NULL")
_STREAM_TOKENS = (yaml.StreamStartToken, yaml.StreamEndToken)
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def restore_texts(new: Any, text: str, schema: type, source: str, key: str = "") -> None:
    """Replace values of text settings in `new` by the characters written in `text`.

    Args:
        new: settings as YAML read them; changed in place.
        text: YAML of the settings, or of the value of the setting `key`.
        schema: dataclass of all settings.
        source: file or override, for messages.
        key: setting that `text` is the value of; empty for a whole file.

    Raises:
        ConfigError: YAML reads a number as another one: 010 as 8, 1:30 as 90.
    """
    if not isinstance(new, DictConfig):
        return
    try:
        written = yaml.BaseLoader(text).get_single_data()  # every scalar as text, no objects
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # tags that only the full reader knows
        return
    for part in reversed(key.split(".") if key else []):
        written = {part: written}
    kinds, reads = _kinds_by_name(schema), dict(_leaves(OmegaConf.to_container(new, resolve=False)))
    for name, value in _leaves(written):
        if name in kinds:
            _restore(new, name, reads.get(name), value, kinds[name], source)


def override_as_yaml(key: str, value: str, schema: type, source: str) -> str:
    """YAML of the value of an override. The value of a text setting is taken as it is, with its spaces, line breaks and
    `#`, unless it is quoted or null; that of another setting is YAML already.

    Args:
        schema: dataclass of all settings.
        source: the override, for messages.

    Raises:
        ConfigError: YAML would drop a part of the value as a comment.
    """
    kind = _kinds_by_name(schema).get(key)
    flow = value.lstrip()[:1] in ("[", "{")
    is_text = (str in _alternatives(kind) and get_origin(kind) is not list) or (kind is Any and not flow)
    if is_text and value.strip() not in _NULLS and not is_quoted(value):
        return quoted(value)
    if comment := _comment_in(value):
        raise ConfigError(f"{source}: YAML takes {comment!r} as a comment. Leave it out, or quote the value.")
    return value


def quoted(text: str) -> str:
    """YAML of a text, in double quotes, on one line and in ASCII."""
    return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def is_quoted(value: str) -> bool:
    """True for a value that YAML reads as one quoted text."""
    if value.strip()[:1] not in ("'", '"'):
        return False
    tokens = _tokens(value)
    return len(tokens) == 1 and isinstance(tokens[0], yaml.ScalarToken) and not tokens[0].plain


def _comment_in(value: str) -> str:
    """The part of a YAML value after its last token that is not space; empty if there is none."""
    if "#" not in value:
        return ""
    tokens = _tokens(value)
    return value[max(token.end_mark.index for token in tokens) :].strip() if tokens else ""


def _tokens(value: str) -> list[yaml.Token]:
    """Tokens of a YAML value, without those of the stream; none where it cannot be read."""
    try:
        return [token for token in yaml.scan(value) if not isinstance(token, _STREAM_TOKENS)]
    except yaml.YAMLError:
        return []


def _restore(new: DictConfig, name: str, read: Any, written: Any, kind: Any, source: str) -> None:
    """Put back what the user wrote for one setting, or refuse it; `read` is its value as YAML read it."""
    if kind is Any:
        if read is not None and read != written:
            OmegaConf.update(new, name, _entries_as_written(read, written))
        return
    alternatives = set(_alternatives(kind))
    text_types = {one for one in alternatives if one is str or (isinstance(one, type) and issubclass(one, Enum))}
    if isinstance(written, list) != isinstance(read, list):
        return
    if isinstance(written, list):
        is_number_list = not text_types and any(isinstance(one, str) for one in written)
        for one in written if is_number_list else ():
            _refuse_other_base(name, one, source)
        is_text_list = text_types and len(read) == len(written) and all(isinstance(one, str) for one in written)
        if is_text_list and None not in read:
            OmegaConf.update(new, name, written)
    elif isinstance(written, str) and read is not None and not isinstance(read, str):
        if text_types:
            OmegaConf.update(new, name, written)
        elif isinstance(read, (int, float)):
            _refuse_other_base(name, written, source)


def _entries_as_written(read: Any, written: Any) -> Any:
    """Value of an untyped setting with its texts as written. Two things stay as YAML read them: null, and the number
    `weight` of an entry of `data.train`."""
    if isinstance(read, list) and isinstance(written, list) and len(read) == len(written):
        return [_entries_as_written(*pair) for pair in zip(read, written, strict=True)]
    if isinstance(read, dict) and isinstance(written, dict) and read.keys() == written.keys():
        return {
            name: value if name == "weight" else _entries_as_written(value, written[name])
            for name, value in read.items()
        }
    return read if read is None or not isinstance(written, str) else written


def _refuse_other_base(name: str, written: Any, source: str) -> None:
    if isinstance(written, str) and _OTHER_BASE.fullmatch(written):
        raise ConfigError(
            f"{source}: {name}={written} is a number to base 8 or 60 in YAML. Write it in decimal digits without a "
            "leading zero."
        )


@lru_cache(maxsize=4)
def _kinds_by_name(schema: type) -> dict[str, Any]:
    return dict(setting_kinds(schema))


def setting_kinds(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Type of each setting by its key with dots."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        kind = hints[item.name]
        if is_dataclass(kind):
            assert isinstance(kind, type)
            yield from setting_kinds(kind, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, kind


def _alternatives(kind: Any) -> Iterator[Any]:
    """Types of a setting's value, or of its elements where it is a list."""
    if get_origin(kind) in (Union, types.UnionType, list):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its key in dots; a list is one value."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}{name}.")
    elif prefix:
        yield prefix[:-1], node
