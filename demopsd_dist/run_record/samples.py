"""Some responses of a step, kept with all that is known of their tokens: a Parquet file a step, a row a response.

What the columns mean is in `COLUMNS`, from which the page `docs/samples.md` has its table. Files are complete or not
there: each is written beside its place and then moved to it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from demopsd_dist.config import Config
from demopsd_dist.data.examples import RewardedGroup
from demopsd_dist.data.records import RewardResult, Rollout, ScoredExample, TokenRecord, Tokens, TrainingExample
from demopsd_dist.models.token_texts import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, str]] = {
    "step": ("int32", "the step that learned from it; the first is 1"),
    "prompt_id": ("string", "of the question"),
    "sample": ("int32", "which of the question's responses, from 0"),
    "field": ("string", "of the question"),
    "question": ("string", "its text"),
    "expected": ("string", "the answer that is marked as right"),
    "student_view": ("string", "the student's prompt, chat template included"),
    "privileged_view": ("string", "the teacher's prompt; null where there was none"),
    "response": ("string", "whole, without special tokens"),
    "truncated": ("bool", "cut at rollout.max_response_tokens"),
    "reward": ("float", "0 to 1"),
    "feedback": ("string", "what the reward said of it, or null"),
    "learned": ("bool", "whether the step learned from it"),
    "advantage": ("float", "reward over its group's mean; null where it was not learned from"),
    "worker": ("int32", "the rollout worker that sampled it"),
    "token_ids": ("list<int32>", "of the response, the first samples.tokens of them, as all lists here"),
    "token_texts": ("list<string>", "a character of several tokens stands at its first, the others are empty"),
    "versions": ("list<int32>", "of the weights that sampled each token"),
    "rollout_logp": ("list<float>", "of each token when it was sampled, natural logarithm"),
    "entropy": ("list<float>", "of the student over the vocabulary, nats; null where not learned from, as all below"),
    "loss": ("list<float>", "of each token, nats"),
    "alpha": ("list<float>", "how much DemoPSD holds back; null for other methods"),
    "disagreement": ("list<float>", "of reference and teacher, Jensen-Shannon, nats; null for other methods"),
    "candidate_ids": ("list<list<int32>>", "the samples.candidates likeliest tokens at each position"),
    "candidate_texts": ("list<list<string>>", "their texts"),
    "student_logp": ("list<list<float>>", "the student's log-probability of each candidate"),
    "reference_logp": ("list<list<float>>", "the same model's without the solution; null without such a forward"),
    "teacher_logp": ("list<list<float>>", "with it; null without a teacher"),
    "target_logp": ("list<list<float>>", "of what the student is taken to: the barycenter; null without a teacher"),
}
_DISTRIBUTIONS = {"alpha": "demopsd/alpha", "disagreement": "demopsd/disagreement_nats"}


def drawn(cfg: Config, step: int, rollouts: Sequence[Rollout]) -> list[str]:
    """Ids of the rollouts to keep of a step, or none where it is not due. `step` counts those done before."""
    every = cfg.samples.every_steps
    if not every or step % every:
        return []
    ids = [rollout.id for rollout in rollouts]
    return random.Random(f"samples/{cfg.seed}/{step}").sample(ids, min(cfg.samples.responses, len(ids)))


def rows_of(
    cfg: Config,
    step: int,
    ids: Sequence[str],
    groups: Iterable[RewardedGroup],
    scored: Iterable[ScoredExample],
    tables: Mapping[str, TokenRecord],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Row]:
    """A row for each id, in their order."""
    texts = TokenTexts(tokenizer)
    examples = {item.id: item.example for item in scored}
    found = {
        rollout.id: (rollout, mark)
        for group in groups
        for rollout, mark in zip(group.rollouts, group.results, strict=True)
    }
    return [
        _of_response(step, *found[name], examples.get(name), texts)
        | _of_tokens(cfg, found[name][0], tables.get(name), texts)
        for name in ids
    ]


def _of_response(
    step: int, rollout: Rollout, mark: RewardResult, example: TrainingExample | None, texts: TokenTexts
) -> Row:
    question = rollout.prompt.question
    shown = example is not None and len(example.privileged_tokens)
    row = {
        "step": step,
        "prompt_id": question.id,
        "sample": rollout.sample,
        "field": question.field,
        "question": question.text,
        "expected": question.answer,
        "student_view": texts.text(rollout.prompt.tokens),
        "privileged_view": texts.text(example.privileged_tokens) if example is not None and shown else None,
        "response": rollout.text,
        "truncated": rollout.truncated,
        "reward": mark.reward,
        "feedback": mark.feedback,
        "learned": example is not None,
        "advantage": None if example is None else example.advantage,
        "worker": rollout.worker,
    }
    return {name: _encodable(value) if isinstance(value, str) else value for name, value in row.items()}


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which a data set may hold and UTF-8 cannot, as its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _of_tokens(cfg: Config, rollout: Rollout, table: TokenRecord | None, texts: TokenTexts) -> Row:
    ids: Tokens = rollout.tokens_T[: cfg.samples.tokens]
    row: Row = {
        "token_ids": ids.tolist(),
        "token_texts": texts.of_sequence(ids),
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
    told = {name: value.tolist() for name, value in values.items() if value is not None}
    return row | told | {"candidate_texts": [texts.of_each(ids_C) for ids_C in table.candidate_TC]}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.parquet"


def write(folder: Path, step: int, rows: Sequence[Row]) -> Path:
    """The step's file in `folder`, which is made where it is missing."""
    folder.mkdir(exist_ok=True)
    path = path_of(folder, step)
    unfinished = path.with_suffix(".unfinished")
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    pq.write_table(pa.table(columns, schema=schema()), unfinished, compression="zstd")
    os.replace(unfinished, path)
    return path


def schema() -> pa.Schema:
    def of(kind: str) -> pa.DataType:
        if kind.startswith("list<"):
            return pa.list_(of(kind[len("list<") : -1]))
        return {"int32": pa.int32(), "string": pa.string(), "bool": pa.bool_(), "float": pa.float32()}[kind]

    return pa.schema([(name, of(kind)) for name, (kind, _) in COLUMNS.items()])


def files(folder: Path) -> list[Path]:
    """Of a run, by step."""
    return sorted(folder.glob("step-*.parquet"))


def forget_after(folder: Path, step: int) -> None:
    """Files of later steps are removed: those steps are undone."""
    for path in files(folder):
        if path > path_of(folder, step):
            path.unlink()


def size(path: Path) -> tuple[int, int]:
    """Responses and tokens in a file, from its footer alone."""
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
    return pq.read_table(path).to_pylist()
