"""Text of models and data sets reaches terminals and pages without control characters."""

from __future__ import annotations

import unicodedata
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from demopsd_dist.run_record.console import Progress, format_time, response_lines
from demopsd_dist.util.printable import abridged_lines, escape_control_chars
from tests.browser.recorded_runs import HOSTILE, LONG_LINE

SAFE = [
    "plain",
    "12 °C – „über“",
    "naïve café",
    "שלום",
    "مرحبا",
    "می\u200cخواهم",
    "數學 数学",
    "👩\u200d🔬",
    "x² ∑ → ≤",
]


@pytest.mark.parametrize("text", SAFE)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert escape_control_chars(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\u2066c\u200f", "a\\u202eb\\u2066c\\u200f"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b2J\u2028\ufeff\u00ad", "\\x9b2J\\u2028\\ufeff\\xad"),
        ("\U000e0041\ue000", "\\U000e0041\\ue000"),
    ],
)
def test_control_and_hidden_characters_are_escaped(text: str, shown: str) -> None:
    assert escape_control_chars(text) == shown


def test_lines_and_length() -> None:
    assert escape_control_chars("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert escape_control_chars("x" * 30, max_chars=10) == "x" * 10 + " … 20 more characters"
    assert escape_control_chars("x" * 30, max_chars=30) == "x" * 30


@given(st.text(max_size=60))
def test_no_control_character_remains(text: str) -> None:
    allowed = "\u200c\u200d"
    kinds = {unicodedata.category(character) for character in escape_control_chars(text) if character not in allowed}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert escape_control_chars(escape_control_chars(text)) == escape_control_chars(text)


GROUPS = {"rollout/groups_learnable_fraction": 0.875}


def rendered(progress: Progress, width: int) -> str:
    file = StringIO()
    Console(file=file, width=width, force_terminal=True, color_system=None).print(progress)
    return file.getvalue()


@pytest.mark.parametrize("width", [1, 8, 24, 39, 40, 95, 96, 250])
def test_the_live_view_fits_any_width_and_shows_hostile_text(width: int) -> None:
    progress = Progress(40)
    assert rendered(progress, width)
    progress.add_step(12, {"perf/step_s": 4.0, "time/wait_for_rollouts_s": 2.0, "time/learn_s": 1.0} | GROUPS)
    for text in [*HOSTILE, LONG_LINE]:
        progress.show_sample(
            {"step": 12, "field": text, "reward": 1.0, "question": text, "response": text, "expected": text}
        )
        output = rendered(progress, width)
        assert max(map(len, output.splitlines())) <= width
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\ufeff", "\x00"} & set(output)
        assert len(output.splitlines()) < 40 or width < 24
    if width >= 40:
        assert "12/40  1:5" in output
        assert ("learned from 88% of groups" in output) is (width >= 72)
        assert "50%" in output


def test_markup_in_a_response_is_text() -> None:
    row = {
        "step": 1,
        "field": "f",
        "reward": 0.0,
        "question": "[bold]q[/]",
        "response": "[link=x]",
        "expected": ":smile:",
    }
    file = StringIO()
    console = Console(file=file, width=80)
    for line in response_lines(row, 80):
        console.print(line)
    assert "[bold]q[/]" in file.getvalue()
    assert "[link=x]" in file.getvalue()
    assert "expected :smile:" in file.getvalue()


def test_clock() -> None:
    assert [format_time(s) for s in (0, 5.9, 65, 7384)] == ["0:00", "0:05", "1:05", "2:03:04"]


def test_a_text_is_shortened_in_its_middle_with_counts() -> None:
    assert abridged_lines("a\nb\nc\nd", max_lines=2) == ["a", "[... 2 lines, 3 characters ...]", "d"]
    assert abridged_lines("a\nb\nc", max_lines=3) == ["a", "b", "c"]
    assert abridged_lines("0123456789", max_chars=4) == ["01 [... 6 characters ...] 89"]
    assert abridged_lines("\x1b[2J" + "y" * 500) == ["\\x1b[2J" + "y" * 196 + " [... 104 characters ...] " + "y" * 200]
