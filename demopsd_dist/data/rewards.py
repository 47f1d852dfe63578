"""Answer checking: 1 if the response's last `<answer>...</answer>` is the record's answer, else 0.

Only string searches, no regular expressions over the response: linear in its length whatever it holds.
"""

from __future__ import annotations

import unicodedata
from decimal import Decimal, InvalidOperation

_OPEN, _CLOSE = "<answer>", "</answer>"


def extract_answer(response: str) -> str | None:
    """The text inside the last `<answer>` that is closed after it; None where there is none.

    Example: `extract_answer("<answer>1</answer> no: <answer> 2 </answer>")` gives `"2"`.
    """
    end = response.rfind(_CLOSE)
    start = response.rfind(_OPEN, 0, end) if end >= 0 else -1
    return None if start < 0 else response[start + len(_OPEN) : end].strip()


def same_answer(given: str, expected: str) -> bool:
    """Equal after Unicode NFKC (full-width letters and digits), case folding and collapsing of white space.

    Two plain decimal numbers are compared by value, exactly: "12.0" is "12", "1e1" is not "10" (no exponents).
    """
    given, expected = _normal(given), _normal(expected)
    if given == expected:
        return True
    left, right = _number(given), _number(expected)
    return left is not None and left == right


def answer_reward(response: str, expected: str) -> float:
    """1.0 for a right answer, 0.0 for a wrong or missing one."""
    given = extract_answer(response)
    return float(given is not None and same_answer(given, expected))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _number(text: str) -> Decimal | None:
    if len(text) > 40 or text.strip("+-.0123456789") != "":
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None
