"""Settings of a dry run as YAML: those that differ from the defaults, or all of them with these marked."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from demopsd_dist.config import Config, changes, settings_keys, to_yaml

_KEY = re.compile(r"( *)([A-Za-z_][\w.]*):")


def settings_lines(config: Config, full: bool) -> Iterator[str]:
    """Lines of YAML, which can be saved and used as a config. A setting that differs from its default is followed by
    the default in a comment.

    Args:
        full: all settings, not only those that differ.
    """
    changed = {key: default for key, (default, _) in changes(Config(), config).items()}
    path: list[str] = []
    shown = False
    for line in to_yaml(config).splitlines():
        found = _KEY.match(line)
        depth = len(found[1]) // 2 if found else 0
        if found and depth <= len(path) and ".".join([*path[:depth], found[2]]) in _PLACES:
            path = [*path[:depth], found[2]]
            key = ".".join(path)
            below = [default for name, default in changed.items() if name.startswith(f"{key}.")]
            shown = full or key in changed or bool(below)
            if shown and key in changed:
                yield from _marked(line, changed[key])
                continue
        if shown:
            yield line
    if not full:
        rest = len(settings_keys()) - len(changed)
        yield f"# {rest} other settings have their defaults; --full prints all of them"


def _places() -> frozenset[str]:
    """Keys of all settings and of the sections that hold them."""
    parts = [key.split(".") for key in settings_keys()]
    return frozenset(".".join(part[:size]) for part in parts for size in range(1, len(part) + 1))


_PLACES = _places()


def _marked(line: str, default: object) -> Iterator[str]:
    """A setting's line with its default; above it where the value goes on over further lines."""
    text = yaml.safe_dump(default, default_flow_style=True, width=10_000).partition("\n...")[0].strip()
    comment = f"# default: {text}"
    try:
        whole = yaml.safe_load(line.strip()) is not None
    except yaml.YAMLError:
        whole = False
    if whole:
        yield f"{line}  {comment}"
    else:
        yield " " * (len(line) - len(line.lstrip())) + comment
        yield line
