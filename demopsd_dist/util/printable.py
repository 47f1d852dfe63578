"""Text from models and data sets, made safe to show: characters that steer a terminal or reorder a line are escaped.

Questions and responses may hold anything: escape sequences that set a terminal's title or clear it, marks that turn the
direction of the text after them, invisible characters.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_NOT_ASCII_TEXT = re.compile(r"[^\x20-\x7e]")
_JOINERS = "\u200c\u200d"  # part of ordinary words in several scripts, and of emoji
_ESCAPED_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape_control_chars(text: str, *, lines: bool = False, max_chars: int | None = None) -> str:
    """The text with every control, format, private and unassigned character as its escape: `\\x1b`, `\\u202e`.

    Args:
        lines: leave line feeds and tabs as they are, for output of several lines.
        max_chars: longer text is cut there, with a note of how many characters are missing.
    """
    missing = 0 if max_chars is None else max(len(text) - max_chars, 0)
    rest = f" … {missing:,} more characters" if missing else ""
    return _NOT_ASCII_TEXT.sub(lambda match: _escape(match.group(), lines), text[:max_chars]) + rest


@lru_cache(maxsize=4096)
def _escape(character: str, lines: bool) -> str:
    if (lines and character in "\n\t") or character in _JOINERS:
        return character
    if unicodedata.category(character) not in _ESCAPED_CATEGORIES:
        return character
    code = ord(character)
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def abridged_lines(text: str, max_lines: int = 24, max_chars: int = 400) -> list[str]:
    """Lines of a text with control characters escaped: the first and the last of them, each shortened in its middle.

    Example: `abridged_lines("a\\nb\\nc\\nd", max_lines=2)` gives `["a", "[... 2 lines, 3 characters ...]", "d"]`.

    Args:
        max_lines: number of lines that remain; a line with the count of the others stands between them.
        max_chars: number of characters of a line that remain, beside the count of the others.
    """
    lines = text.split("\n")
    if len(lines) > max_lines:
        head, tail = (max_lines + 1) // 2, max_lines // 2
        left_out = lines[head : len(lines) - tail]
        count = f"[... {len(left_out):,} lines, {len(chr(10).join(left_out)):,} characters ...]"
        lines = [*lines[:head], count, *lines[len(lines) - tail :]]
    return [escape_control_chars(_abridged(line, max_chars)) for line in lines]


def _abridged(line: str, max_chars: int) -> str:
    if len(line) <= max_chars:
        return line
    head, tail = (max_chars + 1) // 2, max_chars // 2
    return f"{line[:head]} [... {len(line) - max_chars:,} characters ...] {line[len(line) - tail :]}"
