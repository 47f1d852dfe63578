"""Replay batches: the inputs of a step and digests of its results, in `replay/step-000021/` of the run folder.

`batch.parquet` holds the inputs, a row a response; `record.json` holds the digests of the tensors that the step
computed. `launch.replay` repeats the step from them. Neither file can run code when it is read. A folder is written
under a temporary name and renamed, so that it is complete or missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from demopsd_dist.data.records import BatchSize, Rollout, TermWeights, TrainingExample, bare_prompt
from demopsd_dist.run_record.digests import Digests, differences, input_digests
from demopsd_dist.util.code_digest import code_digest
from demopsd_dist.util.errors import CheckpointError, DifferenceError, RunFolderError

FORMAT = 1
BATCH, RECORD = "batch.parquet", "record.json"
LIBRARIES = ("torch", "transformers", "deepspeed", "ray")
_NAME = re.compile(r"step-(\d{6,})")
_INTS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("part", pa.int32()),  # number of the scoring call
        ("turn", pa.int32()),  # index in that call
        ("prompt_tokens", _INTS),
        ("response_tokens", _INTS),
        ("rollout_logp", _FLOATS),
        ("versions", _INTS),
        ("privileged_tokens", _INTS),
        ("engine_support", pa.list_(_INTS)),
        ("advantage", pa.float64()),
        ("reward", pa.float64()),
        ("policy_weight", pa.float64()),  # of the terms of a mixed loss, else null
        ("distillation_weight", pa.float64()),
    ]
)
COLUMNS_OF_LATER_VERSIONS = ("policy_weight", "distillation_weight")


@dataclass(frozen=True)
class ReplayRecord:
    """Settings, circumstances and results of a recorded step."""

    step: int  # the first is 1
    config: str  # YAML
    checkpoint: str | None  # digest of the checkpoint before the step; None for the first step of a run
    size: dict[str, int]
    learning_rate_factor: float
    metrics: dict[str, float]
    digests: Digests
    surroundings: dict[str, str]  # versions of code and libraries


@dataclass(frozen=True)
class ReplayBatch:
    """A recorded step: its examples in the order of the batch, and the indices of those in each scoring call."""

    record: ReplayRecord
    examples: list[TrainingExample]
    score_calls: list[list[int]]

    @property
    def size(self) -> BatchSize:
        return BatchSize(**self.record.size)


def code_versions() -> dict[str, str]:
    """Digest of this code, and versions of the libraries whose arithmetic a step depends on."""
    versions = {"code": code_digest()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def recorded_steps(folder: Path) -> list[int]:
    """The steps that have a replay batch in this folder."""
    matches = (_NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in matches if match)


def remove_except(folder: Path, steps: Iterable[int]) -> None:
    """Remove the replay batches of all steps but these."""
    for step in set(recorded_steps(folder)) - set(steps):
        shutil.rmtree(step_folder(folder, step), ignore_errors=True)


def write(
    folder: Path, record: ReplayRecord, examples: Sequence[TrainingExample], score_calls: Sequence[Sequence[str]]
) -> Path:
    """Write the replay batch of a step and return its folder.

    Args:
        score_calls: rollout ids of each scoring call, in the order of the call.

    Raises:
        RunFolderError: it cannot be written.
    """
    path = step_folder(folder, record.step)
    temporary = path.with_name(f".{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        pq.write_table(_table(examples, score_calls), temporary / BATCH, compression="zstd")
        content = asdict(record) | {"batch": _digest((temporary / BATCH).read_bytes())}
        document = {"format": FORMAT, "digest": _digest_of_content(content), "content": content}
        (temporary / RECORD).write_text(json.dumps(document) + "\n", encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)  # left by an undone step
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunFolderError(
            f"{path} cannot be written: {error}. Free disk space or repair the disk, then resume."
        ) from None
    return path


def _table(examples: Sequence[TrainingExample], score_calls: Sequence[Sequence[str]]) -> pa.Table:
    position = {name: (call, turn) for call, names in enumerate(score_calls) for turn, name in enumerate(names)}
    rollouts = [example.rollout for example in examples]
    columns: dict[str, list[Any]] = {
        "prompt_id": [rollout.prompt.id for rollout in rollouts],
        "sample": [rollout.sample for rollout in rollouts],
        "part": [position[rollout.id][0] for rollout in rollouts],
        "turn": [position[rollout.id][1] for rollout in rollouts],
        "prompt_tokens": [rollout.prompt.tokens for rollout in rollouts],
        "response_tokens": [rollout.tokens_T for rollout in rollouts],
        "rollout_logp": [rollout.logp_T for rollout in rollouts],
        "versions": [rollout.version_T for rollout in rollouts],
        "privileged_tokens": [example.privileged_tokens for example in examples],
        "engine_support": [None if r.support_TK is None else list(r.support_TK) for r in rollouts],
        "advantage": [example.advantage for example in examples],
        "reward": [example.reward for example in examples],
        "policy_weight": [None if example.terms is None else example.terms.policy for example in examples],
        "distillation_weight": [None if example.terms is None else example.terms.distillation for example in examples],
    }
    return pa.table(columns, schema=SCHEMA)


def read(folder: Path, step: int) -> ReplayBatch:
    """Read the replay batch of a step.

    Raises:
        CheckpointError: there is none, or its record is damaged.
        DifferenceError: the batch differs from the recorded one; names the tensor.
    """
    path = step_folder(folder, step)
    content = _content(path / RECORD)
    digest = content.pop("batch")
    record = ReplayRecord(**content)
    columns = {name: _column(path / BATCH, name) for name in SCHEMA.names}
    for name in COLUMNS_OF_LATER_VERSIONS:
        columns[name] = columns[name] or [None] * len(columns["sample"])
    examples = _examples(columns)
    if (first := next(differences(_input_digests(record.digests), input_digests(examples)), None)) is not None:
        raise DifferenceError(f"first that differs: {first}. {path / BATCH} is not the batch of that step.")
    if _digest((path / BATCH).read_bytes()) != digest:
        raise DifferenceError(f"{path / BATCH} differs from what was written, but not in the values of its tensors.")
    return ReplayBatch(record, examples, _score_calls(columns))


def _input_digests(digests: Digests) -> Digests:
    return {tensor: rows for tensor, rows in digests.items() if tensor in SCHEMA.names}


def _content(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {document['format']}; this version reads {FORMAT}.")
        if document["digest"] != _digest_of_content(document["content"]):
            raise CheckpointError(
                f"{path} differs from what was written (digest). The step cannot be compared with it."
            )
        return document["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None


def _column(path: Path, name: str) -> list[Any]:
    """One column; each is read alone, so that an error can name the damaged tensor."""
    try:
        return pq.read_table(path, columns=[name], schema=SCHEMA).column(name).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DifferenceError(f"first that differs: {name}. It cannot be read from {path} ({reason}).") from None


def _examples(columns: dict[str, list[Any]]) -> list[TrainingExample]:
    return [_example({name: values[i] for name, values in columns.items()}) for i in range(len(columns["sample"]))]


def _example(row: dict[str, Any]) -> TrainingExample:
    """An example from a row. A replay does not reward it, so the text and the question are left empty."""

    def ids(name: str) -> np.ndarray:
        return np.asarray(row[name] or (), np.int32)

    support = row["engine_support"]
    rollout = Rollout(
        prompt=bare_prompt(row["prompt_id"], ids("prompt_tokens")),
        sample=row["sample"],
        tokens_T=ids("response_tokens"),
        logp_T=np.asarray(row["rollout_logp"] or (), np.float32),
        text="",
        truncated=False,
        version_T=ids("versions"),
        worker=0,
        support_TK=None if support is None else np.asarray(support, np.int32),
    )
    terms = None if row["policy_weight"] is None else TermWeights(row["policy_weight"], row["distillation_weight"])
    return TrainingExample(rollout, row["reward"], row["advantage"], ids("privileged_tokens"), terms=terms)


def _score_calls(columns: dict[str, list[Any]]) -> list[list[int]]:
    calls: dict[int, dict[int, int]] = {}
    for index, (call, turn) in enumerate(zip(columns["part"], columns["turn"], strict=True)):
        calls.setdefault(call, {})[turn] = index
    return [[indices[turn] for turn in sorted(indices)] for _, indices in sorted(calls.items())]


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()


def _digest_of_content(content: dict[str, Any]) -> str:
    return _digest(json.dumps(content, sort_keys=True).encode())
