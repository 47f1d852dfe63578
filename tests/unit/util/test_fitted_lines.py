"""Lines fitted to a width: nothing lost, no word broken, items whole where they fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.util.fitted_lines import fitted, print_fitted, terminal_width

LINE = (
    "  learner      30.6 GiB a process: runtime 2.5, weights 1.9, gathered weights 1.9, float32 weights 3.7, "
    "gradient of the head 2.6"
)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_line_is_broken_between_items(width: int) -> None:
    lines = list(fitted(LINE, width, indent=4))
    assert all(len(line) <= width for line in lines)
    assert len(lines) == {60: 3, 80: 2, 120: 2, 200: 1}[width]
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(line.endswith((",", ":")) for line in lines[:-1]), "no item is broken"


def test_an_item_longer_than_a_line_is_broken_between_words() -> None:
    lines = list(fitted("fix: " + "bring the checkout there to the commit of this machine " * 2, 40, 5, "#"))
    assert all(len(line) <= 40 and line.startswith("#     ") for line in lines[1:])
    path = "x" * 70
    assert list(fitted(f"error in {path} at the end", 40)) == ["error in", f"  {path}", "  at the end"]


@given(
    st.lists(st.text("ab", min_size=1, max_size=90), min_size=1),
    st.lists(st.sampled_from([" ", ", ", ": ", "   "]), min_size=40, max_size=40),
    st.integers(30, 120),
)
def test_words_and_their_order_stay(words: list[str], between: list[str], width: int) -> None:
    line = "".join(word + between[i % len(between)] for i, word in enumerate(words)).rstrip()
    lines = list(fitted(line, width, 3))
    assert " ".join(lines).split() == line.split()
    longest = max(map(len, line.split()))
    assert all(len(one) <= max(width, 3 + longest) for one in lines)


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() is None, "the output of a test is no terminal"
    print_fitted([LINE])
    assert capsys.readouterr().out == f"{LINE}\n"
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal_width() == 60
    print_fitted([LINE])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
