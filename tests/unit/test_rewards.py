"""Answer checking: what counts as right, and that no response makes it slow."""

from __future__ import annotations

import time

import pytest

from demopsd_dist.data.rewards import answer_reward, extract_answer


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer>\n b \n</answer>", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<answer>Ｂ</answer>", "B"),
        ("<answer>１２</answer>", "12"),
        ("<answer>12.0</answer>", "12"),
        ("<answer>-0.50</answer>", "-.5"),
        (r"<answer>$\frac{1}{2}$</answer>", r"$\frac{1}{2}$"),
        ("<answer>{x: {y}}</answer>", "{x: {y}}"),
        ("<answer>水  is\twet</answer>", "水 is wet"),
        ("<answer>a<answer>B</answer>", "B"),
    ],
)
def test_right(response: str, expected: str) -> None:
    assert answer_reward(response, expected) == 1.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", "B"),
        ("B", "B"),
        ("A car is fast", "A"),
        ("<answer>B", "B"),
        ("B</answer>", "B"),
        ("</answer><answer>B", "B"),
        ("<answer></answer>", "B"),
        ("<answer>B</answer><answer>C</answer>", "B"),
        ("<answer>1e1</answer>", "10"),
        ("<answer>nan</answer>", "0"),
        ("<answer>12.01</answer>", "12"),
        (r"<answer>\frac{1}{3}</answer>", r"\frac{1}{2}"),
    ],
)
def test_wrong(response: str, expected: str) -> None:
    assert answer_reward(response, expected) == 0.0


def test_the_last_closed_answer_counts() -> None:
    assert extract_answer("<answer>1</answer> no: <answer> 2 </answer> <answer>3") == "2"
    assert extract_answer("nothing") is None


@pytest.mark.parametrize("text", ["<answer>" * 125_000, "</answer>" * 110_000, "<" * 1_000_000, "9" * 1_000_000])
def test_a_megabyte_takes_no_time(text: str) -> None:
    """Linear: a quadratic search of these would take minutes, so even a loaded machine tells the two apart."""
    started = time.perf_counter()
    answer_reward(f"<answer>{text}</answer>", "12")
    assert time.perf_counter() - started < 2.0
