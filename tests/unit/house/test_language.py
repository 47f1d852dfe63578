"""Language: docstrings open with a noun or a verb, and words of a private vocabulary stay out of code and docs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.house.source_files import ALL_ROOMS, PRODUCTION, ROOT, python_files, relative, syntax_tree

OPENINGS = {
    *("what", "of", "those", "whose", "where", "how", "that", "these"),
    *("whoever", "whatever", "who", "which"),
}
PRIVATE_WORDS = re.compile(r"\b(told|lessons?|telling|witness|heed|punctual|hands|parcel)\b", re.IGNORECASE)
PROSE = (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.md"), *ROOT.glob("configs/**/*.yaml"))
PAGE = tuple(path for kind in ("html", "js", "css") for path in ROOT.glob(f"demopsd_dist/report/assets/*.{kind}"))
EXCEPTIONS: dict[str, set[str]] = {
    "tests/unit/house/test_language.py": {
        "told",
        "telling",
        "witness",
        "heed",
        "punctual",
        "hands",
        "parcel",
    },  # this list
}


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Docstrings of a file's module, classes and functions, each with the name of its owner."""
    for node in ast.walk(syntax_tree(path)):
        owner = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if owner and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text


def test_a_docstring_opens_with_a_noun_or_a_verb() -> None:
    texts = [
        (f"{relative(path)}: {owner}", text) for path in python_files(*PRODUCTION) for owner, text in docstrings(path)
    ]
    assert len(texts) > 600
    first_words = {(owner, text): re.split(r"\W+", text.lstrip("`*\"'("), maxsplit=1)[0] for owner, text in texts}
    assert [f"{owner}: {text[:60]}" for (owner, text), word in first_words.items() if word.lower() in OPENINGS] == []


def test_a_docstring_says_what_its_owner_does_before_what_it_raises() -> None:
    texts = [
        (f"{relative(path)}: {owner}", text) for path in python_files(*PRODUCTION) for owner, text in docstrings(path)
    ]
    assert [owner for owner, text in texts if text.startswith(("Raises:", "Args:", "Returns:"))] == []


def test_private_words_stand_nowhere() -> None:
    files = [*python_files(*ALL_ROOMS), *PROSE, *PAGE]
    places = [
        f"{relative(path)}:{number}: {word}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for word in PRIVATE_WORDS.findall(line)
        if word.lower() not in EXCEPTIONS.get(relative(path), ())
    ]
    assert places == []
