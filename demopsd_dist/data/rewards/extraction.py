r"""Extraction of the answer from a response.

All functions take linear time, for any response: tags and boxes are found by string searches, and every loop and
regular expression reads a bounded piece. An answer inside a thought (`<think>...</think>`) is none.
"""

from __future__ import annotations

import re
import unicodedata

from demopsd_dist.data.thinking import strip_thinking

_OPEN, _CLOSE = "<answer>", "</answer>"

BOXES = 10
"""Number of boxes that `extract_boxed` tries, from the last."""
BOX_CHARS = 2_000
"""Length of the longest box that is an answer."""
TAIL_CHARS = 200
"""Number of characters at the end of a response that `extract_letter` reads."""

_BRACE_AFTER = re.compile(r"\s{0,10}\{")
_BRACE = re.compile(r"[{}]")
_CLAIM = re.compile(
    r"(?<!wrong )(?<!incorrect )(?<!false )\b(?:answer|option|choice)\s?(?:is(?!\w)\s?:?|=|:)\s?"
    r"(?:(?:therefore|thus|option|choice|letter)(?!\w):?\s?)*",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-+]\$?)?"
    r"(?:(?:(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
)
_PLAIN_CHARACTERS = {0xFF10 + digit: str(digit) for digit in range(10)} | dict(
    zip(map(ord, "\uff0e\uff0c\uff0b\uff0d\u2010\u2011\u2012\u2013\u2212"), ".,+------", strict=True)
)
"""Full-width digits and signs, and the dashes that stand for a minus sign."""
_SPACE_IN_NUMBER = re.compile(r"(?<=[0-9])\\[,!] ?(?=[0-9]{3}(?![0-9]))")
_FIRST_LETTER = re.compile(r"[^\w]*([A-Z])(?!\w)")
COMMAND_WRAPPINGS = tuple(
    (f"\\{name}{{", "}") for name in ("boxed", "fbox", "text", "textbf", "textit", "textrm", "mbox", "mathrm", "mathbf")
)
"""LaTeX commands around an answer that change how it looks alone."""
_WRAPPINGS = (
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ("$", "$"),
    ("(", ")"),
    ("[", "]"),
    ("{", "}"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    *COMMAND_WRAPPINGS,
)
_LAYERS = 8


def extract_answer(response: str) -> str | None:
    """The text inside the last `<answer>` that is closed after it; None where there is none, or nothing inside.

    The tags are these characters exactly: `<Answer>`, `&lt;answer&gt;` and `< answer >` are none.

    Example: `extract_answer("<answer>1</answer> no: <answer> 2 </answer>")` gives `"2"`.
    """
    response = strip_thinking(response)
    end = response.rfind(_CLOSE)
    start = response.rfind(_OPEN, 0, end) if end >= 0 else -1
    return None if start < 0 else response[start + len(_OPEN) : end].strip() or None


def extract_boxed(response: str) -> str | None:
    r"""The text inside the last `\boxed{...}` whose braces balance; None where there is none, or nothing inside.

    Escaped braces (`\{`, `\}`) are text, `\boxed 5` without a brace is no box, and of a box in a box the inner counts.
    Where a box is not closed, the one before it counts: the last `BOXES` are tried, `BOX_CHARS` long at most.

    Example: `extract_boxed(r"\boxed{1}, rather \boxed{\frac{1}{2}}")` gives `r"\frac{1}{2}"`.
    """
    response = strip_thinking(response)
    if "\\boxed" not in response:
        return None
    text = response.replace("\\\\", "\0\0").replace("\\{", "\0\0").replace("\\}", "\0\0")
    end = len(text)
    for _ in range(BOXES):
        end = text.rfind("\\boxed", 0, end)
        if end < 0:
            return None
        brace = _BRACE_AFTER.match(text, end + len("\\boxed"))
        if brace and (close := _closing_brace(text, brace.end())) is not None:
            return response[brace.end() : close].strip() or None
    return None


def _closing_brace(text: str, start: int) -> int | None:
    """Position of the brace that closes the one opened just before `start`."""
    depth = 1
    for match in _BRACE.finditer(text, start, min(len(text), start + BOX_CHARS + 1)):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    return None


def extract_letter(response: str) -> str | None:
    """The letter that the response's last line states as its answer; None where it states none or two.

    The last line that holds anything counts, and of it the last `TAIL_CHARS` characters, in this grammar (white space
    collapsed, full-width letters as plain ones, `**`, `__` and invisible characters dropped; words in either case):

        line    =  letter  |  anything claim letter
        claim   =  ("answer" | "option" | "choice")  ("is" | "is:" | ":" | "=")
                   { "therefore" | "thus" | "option" | "choice" | "letter" }
        letter  =  one of A to Z, upper case, to the end of the line, perhaps wrapped as `lone_letter` has it

    "A" in "A car is fast" or "The answer is A car" is therefore no answer, as words follow; nor is a claim of a
    "wrong", "incorrect" or "false" answer. Two claims of different letters on the line are no answer. It reads form,
    not sense: "I doubt that the answer is B." claims B.

    Example: `extract_letter("A car is fast.\\nThe answer is (B).")` gives `"B"`.
    """
    response = strip_thinking(response)
    tail = drop_invisible(unicodedata.normalize("NFKC", response[-TAIL_CHARS:])).replace("**", "").replace("__", "")
    lines = [" ".join(line.split()) for line in tail.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        return None
    line = lines[-1]
    claims = list(_CLAIM.finditer(line))
    if not claims:
        whole = len(lines) > 1 or len(response) <= TAIL_CHARS
        return _if_upper(lone_letter(line)) if whole else None
    letter = _if_upper(lone_letter(line[claims[-1].end() :]))
    others = {match.group(1) for claim in claims if (match := _FIRST_LETTER.match(line, claim.end()))}
    return letter if others <= {letter} else None


def extract_any(response: str) -> str | None:
    r"""The last `<answer>` (the text inside its box, if any); else the last box; else the letter of the last line."""
    response = strip_thinking(response)
    answer = extract_answer(response)
    if answer is not None:
        return extract_boxed(answer) or answer
    boxed = extract_boxed(response)
    return extract_letter(response) if boxed is None else boxed


def extract_formula(response: str) -> str | None:
    r"""The last `<answer>` (the text inside its box, if any); else the last box."""
    response = strip_thinking(response)
    answer = extract_answer(response)
    boxed = extract_boxed(response if answer is None else answer)
    return answer if boxed is None else boxed


def extract_last_number(response: str) -> str | None:
    """The last number of a response, after its last `####` if that is followed by one; None where there is none.

    Commas between groups of three digits belong to it (also as `10{,}000` or `10\\,000`), and a sign that follows no
    letter, digit or bracket. Full-width digits are plain ones, and dashes before a number are minus signs.

    Example: `extract_last_number("4 trays of 6 are 24 rolls, $1,024 in all.")` gives `"1,024"`.
    """
    response = strip_thinking(response).translate(_PLAIN_CHARACTERS).replace("{,}", ",").replace("\\$", "$")
    response = _SPACE_IN_NUMBER.sub("", response)
    return _last_number(response.rpartition("####")[2]) or _last_number(response)


def _last_number(text: str) -> str | None:
    """The last number of a text; None where there is none, or it is longer than `TAIL_CHARS`."""
    end = max(map(text.rfind, "0123456789")) + 1
    start = max(0, end - TAIL_CHARS)
    numbers = list(_PLAIN_NUMBER.finditer(text, start, end))
    return None if not numbers or (start and numbers[-1].start() == start) else numbers[-1].group().replace("$", "")


def lone_letter(text: str) -> str | None:
    r"""The letter, A to Z in either case, that remains of a text without wrapping and closing punctuation, else None.

    Wrapping is `( )`, `[ ]`, `{ }`, quotes, `*`, `_`, backticks, `$`, `\( \)`, `\[ \]` and a command of
    `COMMAND_WRAPPINGS`; it must be there on both sides, but for `B)`. Closing punctuation is `.`, `!` and `。`.

    Example: "**(B)**." gives "B"; "B: 12 m", "B+", "(B" and "A or B" give None.
    """
    if len(text) > TAIL_CHARS:
        return None
    for _ in range(_LAYERS):
        text = text.strip()
        if len(text) <= 1:
            return text if text.isascii() and text.isalpha() else None
        for left, right in _WRAPPINGS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
                text = text[len(left) : -len(right)]
                break
        else:
            if text[-1] not in ".!。" and not (text[-1] == ")" and "(" not in text):
                return None
            text = text[:-1]
    return None


def drop_invisible(text: str) -> str:
    """The text without format characters, such as zero-width spaces and direction marks."""
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")


def _if_upper(letter: str | None) -> str | None:
    return letter if letter is not None and letter.isupper() else None
