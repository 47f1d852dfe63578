"""Causes that the messages of a disturbed run may name; a message that names none of them is a finding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

CAUSES = {
    "a rollout worker is lost and replaced": r"rollout \d+ .*(replaced|hangs|another)",
    "learners and teacher are restarted": r"Learners and teacher are restarted\.$",
    "a role ended during its start": r"^error: .*(rollout|teacher|learner) \d+ .*(died|ended|lost)",
    "Ray's raylet ended": r"Ray's raylet .*has ended",
    "Ray's GCS ended": r"Ray's gcs_server .*has ended",
    "the disk is full": r"No space left on device",
    "a checkpoint is damaged, an earlier one is taken": r"checkpoint.* is damaged",
    "lines of the metrics are damaged": r"lines of .*metrics\.jsonl are damaged",
    "samples of the evaluation or of a step are damaged": r"samples.* (damaged|cannot be read)",
    "stopped and saved": r"^stopped after step \d+ of \d+; the same command with --resume continues$",
    "interrupted": r"^interrupted$",
    "the step is dropped at limits.stop_s": r"not done within limits\.stop_s",
}
"""Regular expressions of the project's messages, by what they tell a user."""
MESSAGE = re.compile(
    r"^\s*(error|warning):|^interrupted$|^stopped after|Traceback|^\S*(Error|Exception)\b", re.MULTILINE
)


def is_message(line: str) -> bool:
    """Whether a line of a run's output reports something that went wrong."""
    return MESSAGE.search(line) is not None


def cause_of(line: str) -> str | None:
    """The known cause that a line names; None if it names none."""
    return next((cause for cause, pattern in CAUSES.items() if re.search(pattern, line)), None)


def causes_in(lines: Iterable[str]) -> tuple[Counter[str], list[str]]:
    """Number of messages by cause, and the messages that name no known one."""
    counts: Counter[str] = Counter()
    unknown: list[str] = []
    for line in filter(is_message, lines):
        if (cause := cause_of(line.strip())) is not None:
            counts[cause] += 1
        else:
            unknown.append(line.strip()[:500])
    return counts, unknown
