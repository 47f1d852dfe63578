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
