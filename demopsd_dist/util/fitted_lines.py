"""Lines fitted to the width of the terminal: broken between items, else between words, never inside a word."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator

_ITEM = re.compile(r".+?(?:[,;:] | {2,}|$)")
"""A piece of a line with its separator: comma, semicolon or colon and a space, or at least two spaces."""
_WORD = re.compile(r" *[^ ]+ *")
_LEAST = 20  # columns beside the indent; a narrower terminal breaks lines by itself


def terminal_width() -> int | None:
    """Columns to fit to: COLUMNS where it is set, else those of the terminal; None where the output is no terminal."""
    if os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns or None
    return None


def fitted(line: str, width: int | None, indent: int = 2, mark: str = "") -> Iterator[str]:
    """Lines of at most `width` columns with the content of one.

    An item that fits on a line of its own is not broken; a word that does not fit stays whole. A line of a prompt or
    response, which begins with `| `, is not broken at all. Characters of double width count as one.

    Example: `list(fitted("split: 2 rollout, 3 learner", 18))` is `["split: 2 rollout,", "  3 learner"]`.

    Args:
        width: columns; None leaves the line as it is.
        indent: columns before each further line.
        mark: text at the beginning of each further line, before its indent, such as `#` in a commented block.
    """
    if width is None or len(line) <= width or line.removeprefix(mark).lstrip().startswith("| "):
        yield line
        return
    head = mark + " " * indent
    room = max(width, len(head) + _LEAST)
    body = line.lstrip(" ")
    current, empty = line[: len(line) - len(body)], True
    for item in _ITEM.findall(body):
        whole = len(head) + len(item.rstrip()) <= room
        for piece in [item] if whole else _WORD.findall(item):
            if not empty and len(current) + len(piece.rstrip()) > room:
                yield current.rstrip()
                current = head
                piece = piece.lstrip()
            current, empty = current + piece, False
    yield current.rstrip()


def print_fitted(lines: Iterable[str], indent: int = 2, mark: str = "") -> None:
    """Print lines, each fitted to the width of the terminal (`fitted`)."""
    width = terminal_width()
    for line in lines:
        for part in fitted(line, width, indent, mark):
            print(part, flush=True)
