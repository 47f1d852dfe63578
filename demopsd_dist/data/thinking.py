"""Thoughts in responses: `<think>...</think>` and the like, which hold no answer and are never shown to the teacher.

A thought may be unclosed (the response was cut) or unopened (its `<think>` stands at the end of the prompt, as some
chat templates write it).
"""

from __future__ import annotations

import re

THINK_OPEN = "<think>"
_MARKS = {
    THINK_OPEN: "</think>",  # most models
    "[THINK]": "[/THINK]",  # Magistral
    "<|channel>": "<channel|>",  # Gemma 4
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command R and A
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "◁think▷": "◁/think▷",  # Kimi
}
THOUGHT_MARKS = frozenset([*_MARKS, *_MARKS.values()])
"""Beginnings and ends of a thought, by any model."""
_OPENS, _CLOSES = frozenset(_MARKS), frozenset(_MARKS.values())
_TAG = re.compile(f"({'|'.join(map(re.escape, sorted(THOUGHT_MARKS)))})")


def opens_thought(prompt_text: str) -> bool:
    """True where a rendered prompt ends with `<think>` or its like, so that a response begins inside a thought."""
    return prompt_text.rstrip().endswith(tuple(_OPENS))


def holds_thought(response: str) -> bool:
    """True where a response has a mark of a thought."""
    return _TAG.search(response) is not None


def without_marks(response: str) -> str:
    """The response without the marks of thoughts, and with the thoughts."""
    return _TAG.sub("", response)


def strip_thinking(text: str) -> str:
    """Text outside all thoughts, each piece in a line of its own; empty where all is thought. Linear in the text.

    A piece of text counts as outside unless it follows a `<think>` or precedes a `</think>` with no other mark between:
    so an unclosed thought reaches to the end, and an unopened one from the beginning.

    Example: `strip_thinking("hm, 6?</think>It is 5. <think>or")` gives `"It is 5."`.
    """
    if not holds_thought(text):
        return text.strip()
    parts = ["", *_TAG.split(text), ""]  # pieces at the odd positions, each between two tags
    pieces = (
        parts[i].strip() for i in range(1, len(parts), 2) if parts[i - 1] not in _OPENS and parts[i + 1] not in _CLOSES
    )
    return "\n".join(piece for piece in pieces if piece)
