"""Language: docstrings open with a noun or a verb, and words of a private vocabulary stay out of code and docs."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.house.source_files import ALL_ROOMS, PRODUCTION, ROOT, python_files, relative, syntax_tree

OPENINGS = {
    *("what", "of", "those", "whose", "where", "how", "that", "these"),
    *("whoever", "whatever", "who", "which"),
}
PRIVATE_WORDS = re.compile(r"\b(told|lessons?|telling|witness|heed|punctual|hands|parcel)\b", re.IGNORECASE)
PROSE = (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.md"), *ROOT.glob("configs/**/*.yaml"))
PAGE = tuple(path for kind in ("html", "js", "css") for path in ROOT.glob(f"demopsd_dist/report/assets/*.{kind}"))
WITHOUT_CHECK = {"tests/unit/house/test_language.py": "lists the words"}
"""Files in which private words may stand, each with the reason."""


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Docstrings of a file's module, classes, functions and attributes, each after its file and line."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield f"{relative(path)}:{node.lineno}", inspect.cleandoc(node.value.value)


def opens_with_a_riddle(text: str) -> bool:
    return re.split(r"\W+", text.lstrip("`*\"'("), maxsplit=1)[0].lower() in OPENINGS


@pytest.mark.parametrize(("text", "riddle"), [("What it is.", True), ("Whose-ever", True), ("Whether it is.", False)])
def test_the_check_of_openings_sees_whole_words(text: str, riddle: bool) -> None:
    assert opens_with_a_riddle(text) is riddle


def test_a_docstring_opens_with_a_noun_or_a_verb() -> None:
    texts = [docstring for path in python_files(*PRODUCTION) for docstring in docstrings(path)]
    assert len(texts) > 900
    assert [f"{place} {text[:60]}" for place, text in texts if opens_with_a_riddle(text)] == []


def test_a_docstring_says_what_its_owner_does_before_what_it_raises() -> None:
    texts = [docstring for path in python_files(*PRODUCTION) for docstring in docstrings(path)]
    assert [place for place, text in texts if text.startswith(("Raises:", "Args:", "Returns:"))] == []


def test_private_words_stand_nowhere() -> None:
    files = [*python_files(*ALL_ROOMS), *PROSE, *PAGE]
    places = [
        f"{relative(path)}:{number}: {word}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for word in PRIVATE_WORDS.findall(line)
        if relative(path) not in WITHOUT_CHECK
    ]
    assert places == []
