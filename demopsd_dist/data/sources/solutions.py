"""Expected answers out of worked solutions: GSM8K's `#### 24` and MATH's last box."""

from __future__ import annotations

from demopsd_dist.data.rewards.extraction import extract_answer, extract_boxed

MARK = "####"


def split_marked(text: str) -> tuple[str, str] | None:
    """Working and answer of a text whose last line is `#### answer`; None where it is not."""
    working, mark, answer = text.rpartition(MARK)
    answer = answer.strip()
    if not mark or not answer or "\n" in answer or MARK in working:
        return None
    return working.strip(), answer


def answer_in_solution(solution: str) -> str | None:
    """The answer that a worked solution states: after `####`, in its last `<answer>`, or in its last box."""
    marked = split_marked(solution)
    return marked[1] if marked else extract_answer(solution) or extract_boxed(solution)
