"""Recorded responses, marked by a reward: files with a response and its question on each line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from demopsd_dist.config import DataConfig, FieldNames, TruncatedReward
from demopsd_dist.data.checks.own_answers import is_built_in
from demopsd_dist.data.examples import SUCCESS
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import Reward
from demopsd_dist.data.sources.files import read_records
from demopsd_dist.data.sources.items import RefusedRecord, SourceRecord
from demopsd_dist.data.sources.load import question_parser
from demopsd_dist.data.thinking import THINK_OPEN, opens_thought, without_marks
from demopsd_dist.util.errors import DataError

RESPONSE, TRUNCATED = "response", "truncated"
SAMPLES_FIELDS = FieldNames(text="question", answer="expected", field="field", id="prompt_id")
"""Fields of a question in the samples that a run records (docs/samples.md)."""
_VIEW = "student_view"


@dataclass(frozen=True)
class RecordedResponse:
    """A response and its question, with their line or row in the file, and whether it was cut at its limit."""

    number: int
    response: str
    question: Question
    truncated: bool = False


@dataclass(frozen=True)
class MarkedResponse:
    """A recorded response with its score.

    Attributes:
        score: the reward, 0 to 1; None where the reward failed.
        read: the answer that the reward reads in the response; None where it reads none, or only the reward knows.
        feedback: the reward's feedback, or the error of a reward that failed.
    """

    recorded: RecordedResponse
    score: float | None
    read: str | None
    reason: str
    feedback: str | None


def read_responses(path: str, data: DataConfig) -> Iterator[RecordedResponse]:
    """Responses of a file: one record a line or row, with `response` and the fields of its question.

    Raises:
        DataError: the file is missing or holds no record, or a record has no response or no question that can be
            marked; the message names file and line.
    """
    parse = None
    for record in read_records(path, "FILE", "test"):
        if parse is None:
            samples = data.fields == FieldNames() and {_VIEW, "expected", "question"} <= set(record.values)
            parse = question_parser(record, replace(data, fields=SAMPLES_FIELDS) if samples else data)
        if not isinstance(record.values.get(RESPONSE), str):
            raise DataError(
                f"{record.where}: the record has no text in {RESPONSE!r}. Write the response there, an empty one as an "
                "empty text."
            )
        item = parse(record)
        if isinstance(item, RefusedRecord):
            raise DataError(f"{record.where}: the question cannot be marked: {item.reason}. Remove the record.")
        truncated = record.values.get(TRUNCATED) is True
        yield RecordedResponse(record.number, _whole(record), item.question, truncated)
    if parse is None:
        raise DataError(f"FILE={path} holds no record. Give one with a response and its question on each line.")


def mark(recorded: RecordedResponse, reward: Reward) -> MarkedResponse:
    """Put a recorded response through the reward.

    Raises:
        RewardError: the reward fails on it, and `reward.errors` is not `drop`.
    """
    read = reward.extract(recorded.response) if is_built_in(reward) else None
    result = reward.result_of(recorded.response, recorded.question, is_truncated=recorded.truncated)
    if not isinstance(result, RewardResult):
        return MarkedResponse(recorded, None, read, "the reward failed", str(result))
    reason = _reason(result, read, recorded, reward)
    return MarkedResponse(recorded, result.reward, read, reason, result.feedback)


def _reason(result: RewardResult, read: str | None, recorded: RecordedResponse, reward: Reward) -> str:
    response = recorded.response
    if result.reward >= SUCCESS:
        return "right"
    if recorded.truncated and reward.truncated is TruncatedReward.zero:
        return "wrong: cut at its limit (truncated_reward=zero)"
    if result.undecided:
        return "wrong: not compared within limits.math_s"
    if not response.strip():
        return "wrong: an empty response"
    if not is_built_in(reward):
        return "wrong"
    if read is not None:
        return "wrong: another answer"
    outside = without_marks(response)
    if outside != response and reward.extract(outside) is not None:
        return "wrong: an answer inside the thought alone"
    return f"wrong: no answer that reward={reward.name} reads"


def _whole(record: SourceRecord) -> str:
    """The response, after the `<think>` that the recorded prompt of a run's sample has opened, if any."""
    response, view = record.values[RESPONSE], record.values.get(_VIEW)
    return f"{THINK_OPEN}{response}" if isinstance(view, str) and opens_thought(view) else response
