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
from demopsd_dist.data.examples import RewardedGroup
from demopsd_dist.data.records import RewardResult, Rollout, ScoredExample, TokenRecord, Tokens, TrainingExample
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
        rollout.id: (rollout, result)
        for group in groups
        for rollout, result in zip(group.rollouts, group.results, strict=True)
    }
    return [
        _response_columns(step, *rollouts[name], examples.get(name), texts)
        | _token_columns(cfg, rollouts[name][0], tables.get(name), texts)
        for name in ids
    ]


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
    path = file_path(folder, step)
    unfinished = path.with_suffix(".unfinished")
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    with writing(path):
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns, schema=schema()), unfinished, compression="zstd")
        os.replace(unfinished, path)
    return path


def schema() -> pa.Schema:
    """The Parquet schema of `COLUMNS`."""

    def arrow_type(kind: str) -> pa.DataType:
        if kind.startswith("list<"):
            return pa.list_(arrow_type(kind[len("list<") : -1]))
        return {"int32": pa.int32(), "string": pa.string(), "bool": pa.bool_(), "float": pa.float32()}[kind]

    return pa.schema([(name, arrow_type(kind)) for name, (kind, _) in COLUMNS.items()])


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
