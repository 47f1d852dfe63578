"""Thoughts in responses: `<think>...</think>` blocks, which hold no answer and are never shown to the teacher.

A thought may be unclosed (the response was cut) or unopened (its `<think>` stands at the end of the prompt, as some
chat templates write it).
"""

from __future__ import annotations

import re

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_TAG = re.compile(f"({THINK_OPEN}|{THINK_CLOSE})")


def opens_thought(prompt_text: str) -> bool:
    """True where a rendered prompt ends with `<think>`, so that a response begins inside a thought."""
    return prompt_text.rstrip().endswith(THINK_OPEN)


def holds_thought(response: str) -> bool:
    """True where a response has a tag of a thought."""
    return THINK_OPEN in response or THINK_CLOSE in response


def strip_thinking(text: str) -> str:
    """Text outside all thoughts, each piece in a line of its own; empty where all is thought. Linear in the text.

    A piece of text counts as outside unless it follows a `<think>` or precedes a `</think>` with no other tag between:
    so an unclosed thought reaches to the end, and an unopened one from the beginning.

    Example: `strip_thinking("hm, 6?</think>It is 5. <think>or")` gives `"It is 5."`.
    """
    if not holds_thought(text):
        return text.strip()
    parts = ["", *_TAG.split(text), ""]  # pieces at the odd positions, each between two tags
    pieces = (
        parts[i].strip() for i in range(1, len(parts), 2) if parts[i - 1] != THINK_OPEN and parts[i + 1] != THINK_CLOSE
    )
    return "\n".join(piece for piece in pieces if piece)
