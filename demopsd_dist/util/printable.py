"""Text from models and data sets, made safe to show: what could steer a terminal or reorder a line is made visible.

Questions and responses may hold anything: escape sequences that set a terminal's title or clear it, marks that turn the
direction of what follows, characters that nobody sees.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_DOUBTFUL = re.compile(r"[^\x20-\x7e]")
_JOINERS = "\u200c\u200d"  # part of ordinary words in several scripts, and of emoji
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: str, *, lines: bool = False, most: int | None = None) -> str:
    """The text with every control, format, private and unassigned character as its escape: `\\x1b`, `\\u202e`.

    Args:
        lines: leave line feeds and tabs as they are, for a place that can show several lines.
        most: longer text is cut there, and says how much is missing.
    """
    rest = "" if most is None or len(text) <= most else f" … {len(text) - most:,} more characters"
    return _DOUBTFUL.sub(lambda found: _shown(found.group(), lines), text[:most]) + rest


@lru_cache(maxsize=4096)
def _shown(character: str, lines: bool) -> str:
    if (lines and character in "\n\t") or character in _JOINERS:
        return character
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
