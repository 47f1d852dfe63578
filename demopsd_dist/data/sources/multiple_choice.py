"""Prompts of multiple-choice and true-or-false questions, the same for every data set."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
REPEATED = "two options have the same text"
_CLOSING = "\nPlease reason step by step."
_SYSTEM = (
    "{task} Think first, then commit to one answer. Your reply has these two parts and nothing else:\n"
    "<reasoning>\nyour reasoning\n</reasoning>\n<answer>\nX\n</answer>\n"
    "For X put {allowed} alone, without any other word."
)


def options_text(question: str, options: Sequence[str]) -> str:
    """Text of a question with lettered options.

    Example: `options_text("1+1?", ["1", "2"])` gives `"1+1?\\n\\nA: 1\\nB: 2\\nPlease reason step by step."`
    """
    lines = "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n\n{lines}{_CLOSING}"


def options_system(count: int) -> str:
    """System message of a question with `count` options."""
    letters = ", ".join(LETTERS[: count - 1]) + f" or {LETTERS[count - 1]}"
    return _SYSTEM.format(task=f"One of the {count} options answers the question.", allowed=f"the letter {letters}")


def repeated_option(options: Sequence[str]) -> bool:
    """True where two options have the same text, so that a right answer may be marked wrong."""
    return len({" ".join(option.split()) for option in options}) < len(options)


def statement_text(statement: str) -> str:
    """Text of a true-or-false question."""
    return f"{statement}\n\nIs this true or false?{_CLOSING}"


def statement_system() -> str:
    """System message of a true-or-false question."""
    return _SYSTEM.format(task="Decide whether a statement is true.", allowed="True or False")
