"""Scores of recorded responses: `demopsd mark FILE [reward=...] [data.format=...] [--scores] [--config FILE]`

FILE has a response and its question on each line: `response` beside the fields of any data set that the reader knows.
The samples of a run (`samples/step-000012.parquet`) are read as they are. Prints a line for each response, then the
totals by reason. Exit code 0, also where all are wrong; 2 for wrong input; 1 where the reward fails on a response.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.config import Config, load
from demopsd_dist.data.recorded_responses import MarkedResponse, mark, read_responses
from demopsd_dist.data.rewards import ANSWER_FORMS, other_form, resolve_reward
from demopsd_dist.util.errors import ConfigError
from demopsd_dist.util.fitted_lines import print_fitted
from demopsd_dist.util.printable import escape_control_chars
from launch._command_line import command_parser, exit_code_of, user_path

DEFAULTS = Path(__file__).parents[1] / "configs" / "evaluate.yaml"
SETTINGS = (
    "reward",
    "reward_errors",
    "truncated_reward",
    "data.format",
    "data.fields",
    "limits.reward_s",
    "limits.math_s",
    "limits.start_s",
)
"""Settings with an effect on a score."""
SHOWN_CHARS = 60


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("mark", __doc__)
    parser.add_argument("file", metavar="FILE", help="a .jsonl, .json, .csv or .parquet file with recorded responses")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings: {', '.join(SETTINGS)}")
    parser.add_argument(
        "--config", type=user_path, default=DEFAULTS, help="a run's settings; default: configs/evaluate.yaml"
    )
    parser.add_argument("--scores", action="store_true", help="print nothing but one score a line, nan for a failure")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_intermixed_args(argv)
    return exit_code_of(lambda: mark_and_print(arguments))


def mark_and_print(arguments: argparse.Namespace) -> int:
    """Mark each response of the file and print the results; the exit code."""
    refuse_other_settings(arguments.overrides)
    config = load(arguments.config, arguments.overrides)
    reward = resolve_reward(config.reward, config.limits, config.reward_errors, config.truncated_reward)
    reasons: Counter[str] = Counter()
    total, unread = 0.0, []
    for recorded in read_responses(arguments.file, config.data):
        marked = mark(recorded, reward)
        reasons[marked.reason] += 1
        total += marked.score or 0.0
        if marked.read is None and not arguments.scores and config.reward in ANSWER_FORMS:
            unread.append((recorded.response, recorded.question.answer))
        if arguments.scores:
            print(score_text(marked), flush=True)
        else:
            print_fitted([format_marked(marked)], indent=9)
    if not arguments.scores:
        print_fitted(summary(config, reasons, total))
        if hint := other_form(unread, config.reward):
            print_fitted([f"note: {len(unread):,} responses have no answer that reward={config.reward} reads; {hint}"])
    return 0


def refuse_other_settings(overrides: Sequence[str]) -> None:
    """Refuse a word whose setting has no effect on a score.

    Raises:
        ConfigError: names the settings that have one.
    """
    for word in overrides:
        key = word.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in SETTINGS):
            raise ConfigError(f"{word} has no effect on the score of a response; these have: {', '.join(SETTINGS)}.")


def score_text(marked: MarkedResponse) -> str:
    return "nan" if marked.score is None else f"{marked.score:g}"


def format_marked(marked: MarkedResponse) -> str:
    """One line: number of the record, score, answer, expected answer, reason, and the reward's feedback if any."""
    answer = "-" if marked.read is None else quoted(marked.read)
    expected = quoted(marked.recorded.question.answer)
    feedback = "" if marked.feedback is None else f"   {quoted(marked.feedback, 4 * SHOWN_CHARS)}"
    place = f"{marked.recorded.number:>5}  {score_text(marked):<5}"
    return f"{place} read {answer}   expected {expected}   {marked.reason}{feedback}"


def quoted(text: str, max_chars: int = SHOWN_CHARS) -> str:
    return f"'{escape_control_chars(text, max_chars=max_chars)}'"


def summary(config: Config, reasons: Counter[str], total: float) -> list[str]:
    """Number of responses with their mean score, and their number by reason."""
    count = reasons.total()
    lines = [f"{count:,} responses, reward={config.reward}, mean score {total / count:.3f}"]
    return lines + [f"{number:>8,}  {reason}" for reason, number in reasons.most_common()]


if __name__ == "__main__":
    sys.exit(main())
