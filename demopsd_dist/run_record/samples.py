"""Recorded samples: some responses of a step with the values of each token, one Parquet file per step,
one row per response.

`COLUMNS` defines the columns; the table in `docs/samples.md` is a copy of it. A file is written under a temporary name
and renamed, so that it is complete or missing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from demopsd_dist.config import Config
from demopsd_dist.data.accuracy import AnswerGroup
from demopsd_dist.data.examples import RewardedGroup
from demopsd_dist.data.records import (
    Question,
    RewardResult,
    Rollout,
    ScoredExample,
    TokenRecord,
    Tokens,
    TrainingExample,
)
from demopsd_dist.models.token_texts import TokenTexts
from demopsd_dist.run_record.folder import writing
from demopsd_dist.util.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, str]] = {
    "step": ("int32", "step that trained on the response; the first is 1"),
    "prompt_id": ("string", "id of the question"),
    "sample": ("int32", "number of the response among those to the question, from 0"),
    "field": ("string", "field of the question"),
    "question": ("string", "text of the question"),
    "expected": ("string", "the right answer"),
    "student_view": ("string", "the student's prompt, chat template included"),
    "privileged_view": ("string", "the teacher's prompt; null without a teacher"),
    "solution_source": ("string", "source of the solution in it (privileged.source), or `feedback`; null without one"),
    "response": ("string", "text of the response, without special tokens"),
    "truncated": ("bool", "cut at rollout.max_response_tokens"),
    "reward": ("float", "reward, 0 to 1"),
    "feedback": ("string", "feedback of the reward, or null"),
    "learned": ("bool", "true if the response is a training example of the step"),
    "advantage": ("float", "reward relative to the group's mean; null if not learned"),
    "worker": ("int32", "rollout worker that sampled it"),
    "group_samples": ("list<int32>", "numbers of all responses to the question in this step, this one included"),
    "group_rewards": ("list<float>", "their rewards, in the same order"),
    "group_texts": ("list<string>", "their texts, without special tokens"),
    "shown_samples": (
        "list<int32>",
        "numbers of the responses whose text stands in privileged_view; several if their texts are the same",
    ),
    "token_ids": ("list<int32>", "first samples.tokens token ids of the response; all lists here have their length"),
    "token_texts": ("list<string>", "text of each token; a character of several tokens is at its first token"),
    "versions": ("list<int32>", "version of the weights that sampled each token"),
    "rollout_logp": ("list<float>", "log-probability of each token when it was sampled, nats"),
    "entropy": ("list<float>", "student's entropy over the vocabulary, nats; null if not learned, as all below"),
    "loss": ("list<float>", "loss of each token, nats"),
    "alpha": ("list<float>", "DemoPSD's gate alpha; null for other methods"),
    "disagreement": ("list<float>", "Jensen-Shannon divergence of reference and teacher, nats; null for other methods"),
    "candidate_ids": ("list<list<int32>>", "the samples.candidates most likely tokens at each position"),
    "candidate_texts": ("list<list<string>>", "texts of the candidates"),
    "student_logp": ("list<list<float>>", "student's log-probability of each candidate"),
    "reference_logp": ("list<list<float>>", "reference's log-probability of each candidate; null without a reference"),
    "teacher_logp": ("list<list<float>>", "teacher's log-probability of each candidate; null without a teacher"),
    "target_logp": (
        "list<list<float>>",
        "log-probability under the target, DemoPSD's barycenter; null without a teacher",
    ),
}
"""Type and meaning of each column."""
EVALUATION_COLUMNS: dict[str, tuple[str, str]] = {
    "step": ("int32", "step after which the evaluation was made; 0 is before the first"),
    "prompt_id": ("string", "id of the question"),
    "field": ("string", "field of the question"),
    "question": ("string", "text of the question"),
    "expected": ("string", "the right answer"),
    "texts": ("list<string>", "the responses, one after the other"),
    "answers": ("list<string>", "the answer that the reward reads in each; null for none"),
    "rewards": ("list<float>", "their rewards, 0 to 1; 0 where the reward failed"),
}
"""Type and meaning of each column of `evaluations/step-000040-test.parquet`, one row a question."""
_BEGINNING = 400  # characters by which a solution is found in the teacher's prompt
_DISTRIBUTIONS = {"alpha": "demopsd/alpha", "disagreement": "demopsd/disagreement_nats"}


def choose_recorded(cfg: Config, step: int, rollouts: Sequence[Rollout]) -> list[str]:
    """Ids of the rollouts of a step to record, chosen by the seed; empty if none is due. `step` counts from 0."""
    every = cfg.samples.every_steps
    if not every or step % every:
        return []
    ids = [rollout.id for rollout in rollouts]
    return random.Random(f"samples/{cfg.seed}/{step}").sample(ids, min(cfg.samples.responses, len(ids)))


def sample_rows(
    cfg: Config,
    step: int,
    ids: Sequence[str],
    groups: Iterable[RewardedGroup],
    scored: Iterable[ScoredExample],
    tables: Mapping[str, TokenRecord],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Row]:
    """A row for each of the rollouts `ids`, in that order."""
    texts = TokenTexts(tokenizer)
    examples = {item.id: item.example for item in scored}
    rollouts = {
        rollout.id: (rollout, result, group)
        for group in groups
        for rollout, result in zip(group.rollouts, group.results, strict=True)
    }
    rows = []
    for name in ids:
        rollout, result, group = rollouts[name]
        row = _response_columns(step, rollout, result, examples.get(name), texts)
        row |= _group_columns(group, rollout, row["privileged_view"], row["solution_source"])
        rows.append(row | _token_columns(cfg, rollout, tables.get(name), texts))
    return rows


def _response_columns(
    step: int, rollout: Rollout, result: RewardResult, example: TrainingExample | None, texts: TokenTexts
) -> Row:
    question = rollout.prompt.question
    has_view = example is not None and len(example.privileged_tokens)
    row = {
        "step": step,
        "prompt_id": question.id,
        "sample": rollout.sample,
        "field": question.field,
        "question": question.text,
        "expected": question.answer,
        "student_view": texts.text(rollout.prompt.tokens),
        "privileged_view": texts.text(example.privileged_tokens) if example is not None and has_view else None,
        "solution_source": None if example is None else example.source,
        "response": rollout.text,
        "truncated": rollout.truncated,
        "reward": result.reward,
        "feedback": result.feedback,
        "learned": example is not None,
        "advantage": None if example is None else example.advantage,
        "worker": rollout.worker,
    }
    return {name: _encodable(value) if isinstance(value, str) else value for name, value in row.items()}


def _group_columns(group: RewardedGroup, own: Rollout, view: str | None, source: str | None) -> Row:
    """All responses to the question, and those that the teacher saw: a solution may be cut, so by their beginnings."""
    shown = []
    if view is not None and "sibling" in (source or ""):
        beginnings = {i: group.solution(i)[:_BEGINNING] for i in group.successes if group.rollouts[i] is not own}
        shown = [group.rollouts[i].sample for i, text in beginnings.items() if text.strip() and text in view]
    return {
        "group_samples": [rollout.sample for rollout in group.rollouts],
        "group_rewards": group.rewards,
        "group_texts": [_encodable(rollout.text) for rollout in group.rollouts],
        "shown_samples": shown,
    }


def _encodable(text: str) -> str:
    """The text with unpaired surrogates escaped: a data set may hold them and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _token_columns(cfg: Config, rollout: Rollout, table: TokenRecord | None, texts: TokenTexts) -> Row:
    ids: Tokens = rollout.tokens_T[: cfg.samples.tokens]
    row: Row = {
        "token_ids": ids.tolist(),
        "token_texts": texts.texts_of_sequence(ids),
        "versions": rollout.version_T[: len(ids)].tolist(),
        "rollout_logp": rollout.logp_T[: len(ids)].tolist(),
    }
    if table is None:
        return row
    distributions = {name: table.distributions.get(key) for name, key in _DISTRIBUTIONS.items()}
    values = {
        "entropy": table.entropy_T,
        "loss": table.loss_T,
        **distributions,
        "candidate_ids": table.candidate_TC,
        "student_logp": table.student_logp_TC,
        "reference_logp": table.reference_logp_TC,
        "teacher_logp": table.teacher_logp_TC,
        "target_logp": table.target_logp_TC,
    }
    columns = {name: value.tolist() for name, value in values.items() if value is not None}
    return row | columns | {"candidate_texts": [texts.texts_of_tokens(ids_C) for ids_C in table.candidate_TC]}


def file_path(folder: Path, step: int) -> Path:
    """Path of the file of a step."""
    return folder / f"step-{step:06d}.parquet"


def write(folder: Path, step: int, rows: Sequence[Row]) -> Path:
    """Write the file of a step into `folder`, which is created if missing."""
    return _write_rows(file_path(folder, step), rows, COLUMNS)


def evaluation_row(step: int, question: Question, texts: Sequence[str], group: AnswerGroup) -> Row:
    """Row of a question in an evaluation, with the responses to it."""
    row: Row = {
        "step": step,
        "prompt_id": question.id,
        "field": question.field,
        "question": question.text,
        "expected": question.answer,
        "texts": [_encodable(text) for text in texts],
        "answers": [None if answer is None else _encodable(answer) for answer in group.answers],
        "rewards": list(group.rewards),
    }
    return {name: _encodable(value) if isinstance(value, str) else value for name, value in row.items()}


def write_evaluation(folder: Path, step: int, split: str, rows: Sequence[Row]) -> Path:
    """Write the responses of an evaluation of one split into `folder`, which is created if missing."""
    return _write_rows(folder / f"step-{step:06d}-{split}.parquet", rows, EVALUATION_COLUMNS)


def remove_evaluations_after(folder: Path, step: int) -> None:
    """Remove the files of evaluations after later steps, for a run that goes back to this one."""
    for path in files(folder):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()


def _write_rows(path: Path, rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> Path:
    unfinished = path.with_suffix(".unfinished")
    values = {name: [row.get(name) for row in rows] for name in columns}
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(values, schema=schema(columns)), unfinished, compression="zstd")
        os.replace(unfinished, path)
    return path


def schema(columns: Mapping[str, tuple[str, str]] = COLUMNS) -> pa.Schema:
    """The Parquet schema of these columns."""

    def arrow_type(kind: str) -> pa.DataType:
        if kind.startswith("list<"):
            return pa.list_(arrow_type(kind[len("list<") : -1]))
        return {"int32": pa.int32(), "string": pa.string(), "bool": pa.bool_(), "float": pa.float32()}[kind]

    return pa.schema([(name, arrow_type(kind)) for name, (kind, _) in columns.items()])


def files(folder: Path) -> list[Path]:
    """The files of a run, by step."""
    return sorted(folder.glob("step-*.parquet"))


def remove_after(folder: Path, step: int) -> None:
    """Remove the files of steps after this one, for a run that goes back to it."""
    for path in files(folder):
        if path > file_path(folder, step):
            path.unlink()


def count_rows_and_tokens(path: Path) -> tuple[int, int]:
    """Numbers of responses and of tokens in a file, read from its footer."""
    with _reading(path):
        footer = pq.read_metadata(path)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    tokens = sum(
        group.column(i).num_values
        for group in groups
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.startswith("token_ids.")
    )
    return footer.num_rows, tokens


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        DataError: it is damaged.
    """
    with _reading(path):
        return pq.read_table(path).to_pylist()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it: the other samples can be read without it.") from None
