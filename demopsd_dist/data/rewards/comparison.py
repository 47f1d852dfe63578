"""Comparison of an answer with the expected one, in linear time for any text."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from demopsd_dist.data.rewards.extraction import COMMAND_WRAPPINGS, drop_invisible, lone_letter
from demopsd_dist.data.rewards.latex_spelling import plain_spelling
from demopsd_dist.data.rewards.letter_case import same_but_for_case

ANSWER_CHARS = 10_000
"""Length of the longest answer that is brought into a normal form."""
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_WRAPPINGS = (  # around any answer
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")),
    *(("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`")),
    *(('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’")),
)
_COMMANDS = tuple(left for left, _ in COMMAND_WRAPPINGS)
_AROUND_WORDS = (("(", ")"), ("[", "]"), ("{", "}"))
_AROUND_NUMBERS = (("(", ")"), ("{", "}"))
_LAYERS = 8
_ATOM_CHARS = 100
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
_VALUE = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?|([+-]?)\\frac\{{({_NUMBER})\}}\{{({_NUMBER})\}}")
_NUMBER_CHARS = 40
_EXCLAMATION = re.compile(r"[^0-9=+*/^\\]*[^\W\d_]{2}!")
_LETTER_FACTORIAL = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]\)?!")
_LOWER_LETTER_FACTORIAL = re.compile(r"(?<![A-Za-z0-9])[a-z]\)?!")
_DOLLARS = re.compile(r"\\\$ ?(?=[.0-9])")
_ASSIGNMENT = re.compile(r"((?:[^\W\d_]|\\[a-zA-Z]{1,20})(?:_(?:\w|\{\w{1,10}\}))?)? ?= ?([^=]+)")

_ATOM = r"(?:Cl|Br|[BCNOPSFI]|[bcnops](?=[0-9])|\[[^\[\]]{1,20}\])"
_SMILES = re.compile(rf"[BCNOPS]={_ATOM}(?:{_ATOM}|[bcnops=#()/\\%0-9])*")
"""A molecule whose first bond is double, such as `O=C(O)C`, which assigns nothing."""


def same_answer(answer: str, expected: str) -> bool:
    r"""Compare an answer with the expected one. They are the same if they are equal after

    * Unicode NFKC (full-width letters and digits are plain ones; look-alikes of other scripts stay different: a
      Cyrillic А is no A), superscripts as powers ("10²" is "10^2" and not "102"), minus signs and dashes as "-";
    * dropping invisible format characters (zero-width spaces, direction marks, soft hyphens);
    * collapsing of white space, and case folding where case carries no meaning (`same_but_for_case`);
    * dropping LaTeX's dollar sign before a number: r"\$5" is "5";
    * removing wrappings: `$ $`, `\( \)`, `\boxed{}`, `\text{}`, `**`, backticks, quotes and the like around any answer,
      brackets around a number or a word, a full stop or an exclamation mark at the end, "=" or "x =" before it. Only
      of the expected answer an exclamation mark after a number is a factorial;
    * one spelling of LaTeX (`plain_spelling`).

    Numbers, and fractions of two numbers, are compared by value, exactly: "12.0", "+12" and "012" are "12", "-0" is
    "0", "1e3" is "1000", r"\frac{-1}{2}" is "-0.5". Commas between groups of three digits are dropped: "1,234" is
    "1234" and never 1.234. "12 m" is not "12" (no units), "2*3" not "6" (no arithmetic), "50%" not "0.5".

    A single letter is the same in either case, bare or as `lone_letter` reads it: "(B).", "**B**" and r"\text{B}" are
    "B"; "B: 12 m" is not. "n!" is a factorial and not "n": of the expected answer always, of a response in lower case,
    unless a choice from A to J is expected.

    An answer longer than twice the expected one plus 200 characters is different, and one of more than
    `ANSWER_CHARS` is the same only if it is equal character by character: normal forms of hostile text are slow.
    """
    answer, expected = answer.strip(), expected.strip()
    if answer == expected:
        return True
    if len(answer) > min(2 * len(expected) + 200, ANSWER_CHARS) or len(expected) > ANSWER_CHARS:
        return False
    answer, expected = _normalize(answer), _normalize(expected)
    if answer == expected:
        return bool(answer)
    amounts = _DOLLARS.sub("", answer), _DOLLARS.sub("", expected)
    return _same_normalized(answer, expected) or (amounts != (answer, expected) and _same_normalized(*amounts))


def _same_normalized(answer: str, expected: str) -> bool:
    """`same_answer` for answers that are different after `_normalize`, or equal but for dollar signs."""
    letter, expected_letter = lone_letter(answer), lone_letter(expected)
    is_option = expected_letter is not None and expected_letter in "ABCDEFGHIJabcdefghij" and "!" not in expected
    has_factorial = _LETTER_FACTORIAL.search(expected) or _LOWER_LETTER_FACTORIAL.search(answer)
    is_factorial = has_factorial is not None and not is_option
    if not is_factorial and (letter is not None or expected_letter is not None):
        return letter is not None and expected_letter is not None and letter.casefold() == expected_letter.casefold()
    expected = _plain(expected, keep_factorial=True)
    keep_factorial = is_factorial or expected.endswith("!")
    answer, expected = _without_assignment(_plain(answer, keep_factorial=keep_factorial), expected)
    left, right = _value(answer), _value(expected)
    if left is not None and right is not None:
        return left == right
    return bool(answer) and same_but_for_case(answer, expected)


def plain_value(answer: str) -> Fraction | None:
    """Value of an answer that is a number or a fraction of two numbers, as `same_answer` reads it; None for another."""
    answer = answer.strip()
    return None if len(answer) > ANSWER_CHARS else _value(_plain(_normalize(answer), keep_factorial=True))


def _normalize(text: str) -> str:
    text = _SUPERSCRIPT.sub(lambda match: "^" + match.group(), drop_invisible(text))
    return " ".join(unicodedata.normalize("NFKC", text).translate(_DASHES).split())


def _plain(text: str, *, keep_factorial: bool) -> str:
    """The text without wrappings, in one spelling."""
    return _unwrapped(plain_spelling(_unwrapped(text, keep_factorial)), keep_factorial)


def _unwrapped(text: str, keep_factorial: bool) -> str:
    """The text without the wrappings, full stop and exclamation mark of `same_answer`."""
    for _ in range(_LAYERS):
        text = text.strip()
        inner = _without_wrapping(text)
        if inner is None:
            inner = _without_end(text, keep_factorial)
        if inner is None or not inner.strip():
            return text
        text = inner
    return text


def _without_wrapping(text: str) -> str | None:
    """The text inside its outermost wrapping; None where it has none."""
    for left, right in _WRAPPINGS:
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            inner = text[len(left) : -len(right)]
            return None if left in inner or right in inner else inner
    for command in _COMMANDS:
        if text.startswith(command) and text.endswith("}") and _is_balanced(inner := text[len(command) : -1]):
            return inner
    if len(text) <= _ATOM_CHARS:
        inner = text[1:-1].strip()
        word = _WORD.fullmatch(inner)
        if (word or _value(inner) is not None) and (text[0], text[-1]) in (_AROUND_WORDS if word else _AROUND_NUMBERS):
            return inner
    return None


def _is_balanced(text: str) -> bool:
    """True where each closing brace has an opening one before it, and the reverse."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _without_end(text: str, keep_factorial: bool) -> str | None:
    """The text without one mark at its end; None where it has none, or the mark belongs to the answer."""
    if len(text) < 2 or text[-1] not in ".!。" or text[-2] in ".!。":
        return None
    number = text[-2] in "*_`" or _value(text[:-1]) is not None
    if text[-1] == "!" and (keep_factorial or not number) and not _EXCLAMATION.fullmatch(text):
        return None
    return text[:-1]


def _without_assignment(answer: str, expected: str) -> tuple[str, str]:
    """The two answers without "=" or "x =" before them, unless they assign to different variables."""
    matches = [None if _SMILES.fullmatch(text) else _ASSIGNMENT.fullmatch(text) for text in (answer, expected)]
    names = {match.group(1) for match in matches if match and match.group(1)}
    if len(names) > 1:
        return answer, expected
    left, right = (match.group(2) if match else text for match, text in zip(matches, (answer, expected), strict=True))
    return _unwrapped(left, keep_factorial=True), _unwrapped(right, keep_factorial=True)


def _value(text: str) -> Fraction | None:
    """Value of a number, or of a fraction of two numbers; None for anything else."""
    if len(text) > 2 * _NUMBER_CHARS + 12:
        return None
    match = _VALUE.fullmatch(text)
    if match is None:
        return None
    whole, over, sign, top, bottom = match.groups()
    numerator, denominator = whole or top, over or bottom or "1"
    if max(len(numerator), len(denominator)) > _NUMBER_CHARS:
        return None
    divisor = Fraction(denominator)
    if divisor == 0:
        return None
    return Fraction(numerator) / divisor * (-1 if sign == "-" else 1)
