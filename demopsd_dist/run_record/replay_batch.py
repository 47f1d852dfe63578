"""Whole batches on disk, each with what came of it: `replay/step-000021/` in the run folder, for `launch.replay`.

`batch.parquet` holds what the step took in, a row a response; what it computed from that is in `record.json`, as
digests. Neither can run code when it is read. A folder is complete or not there: it is written aside and renamed.
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

from demopsd_dist.data.records import BatchSize, Prompt, Question, Rollout, TrainingExample
from demopsd_dist.run_record.digests import DigestDifference, Digests, differences, of_inputs
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
        ("part", pa.int32()),  # examples of one part were scored together
        ("turn", pa.int32()),  # and in this order
        ("prompt_tokens", _INTS),
        ("response_tokens", _INTS),
        ("rollout_logp", _FLOATS),
        ("versions", _INTS),
        ("privileged_tokens", _INTS),
        ("engine_support", pa.list_(_INTS)),
        ("advantage", pa.float64()),
        ("reward", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ReplayRecord:
    """What the step was done with, and what came of it."""

    step: int  # the first is 1
    config: str  # YAML
    checkpoint: str | None  # digest of the manifest of the one before; None where the run began with this step
    size: dict[str, int]
    learning_rate_factor: float
    metrics: dict[str, float]
    digests: Digests
    surroundings: dict[str, str]  # of code and libraries


@dataclass(frozen=True)
class ReplayBatch:
    """Examples in the order of the batch; `parts` are the places of those that were scored together."""

    record: ReplayRecord
    examples: list[TrainingExample]
    parts: list[list[int]]

    @property
    def size(self) -> BatchSize:
        return BatchSize(**self.record.size)


def surroundings() -> dict[str, str]:
    found = {"code": code_digest()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def steps(folder: Path) -> list[int]:
    """That are kept in `replay/` of a run."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def keep_only(folder: Path, wanted: Iterable[int]) -> None:
    """Remove all other steps."""
    for step in set(steps(folder)) - set(wanted):
        shutil.rmtree(folder_of(folder, step), ignore_errors=True)


def write(
    folder: Path, record: ReplayRecord, examples: Sequence[TrainingExample], parts: Sequence[Sequence[str]]
) -> Path:
    """
    Args:
        parts: ids of the rollouts that were scored together, in that order.

    Raises:
        RunFolderError: it cannot be written.
    """
    path = folder_of(folder, record.step)
    aside = path.with_name(f".{path.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        pq.write_table(_table(examples, parts), aside / BATCH, compression="zstd")
        content = asdict(record) | {"batch": _digest((aside / BATCH).read_bytes())}
        told = {"format": FORMAT, "digest": _digest_of_content(content), "content": content}
        (aside / RECORD).write_text(json.dumps(told) + "\n", encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)  # of a life that is undone
        os.replace(aside, path)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunFolderError(f"{path} cannot be written: {error}. Make room or mend the disk, then resume.") from None
    return path


def _table(examples: Sequence[TrainingExample], parts: Sequence[Sequence[str]]) -> pa.Table:
    place = {name: (part, turn) for part, names in enumerate(parts) for turn, name in enumerate(names)}
    rollouts = [example.rollout for example in examples]
    columns: dict[str, list[Any]] = {
        "prompt_id": [rollout.prompt.id for rollout in rollouts],
        "sample": [rollout.sample for rollout in rollouts],
        "part": [place[rollout.id][0] for rollout in rollouts],
        "turn": [place[rollout.id][1] for rollout in rollouts],
        "prompt_tokens": [rollout.prompt.tokens for rollout in rollouts],
        "response_tokens": [rollout.tokens_T for rollout in rollouts],
        "rollout_logp": [rollout.logp_T for rollout in rollouts],
        "versions": [rollout.version_T for rollout in rollouts],
        "privileged_tokens": [example.privileged_tokens for example in examples],
        "engine_support": [None if r.support_TK is None else list(r.support_TK) for r in rollouts],
        "advantage": [example.advantage for example in examples],
        "reward": [example.reward for example in examples],
    }
    return pa.table(columns, schema=SCHEMA)


def read(folder: Path, step: int) -> ReplayBatch:
    """
    Raises:
        CheckpointError: it is not there, or its record is damaged.
        DifferenceError: the batch is not the one that was kept; names the tensor.
    """
    path = folder_of(folder, step)
    content = _content(path / RECORD)
    digest = content.pop("batch")
    record = ReplayRecord(**content)
    columns = {name: _column(path / BATCH, name) for name in SCHEMA.names}
    examples = _examples(columns)
    if (first := next(differences(_of_inputs(record.digests), of_inputs(examples)), None)) is not None:
        raise _not_as_kept(path / BATCH, first)
    if _digest((path / BATCH).read_bytes()) != digest:
        raise DifferenceError(f"{path / BATCH} is not as it was written, beside the values of its tensors.")
    return ReplayBatch(record, examples, _parts(columns))


def _of_inputs(digests: Digests) -> Digests:
    return {tensor: rows for tensor, rows in digests.items() if tensor in SCHEMA.names}


def _not_as_kept(path: Path, first: DigestDifference) -> DifferenceError:
    return DifferenceError(f"first that differs: {first}. {path} is not the batch of that step.")


def _content(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {told['format']}; this version reads {FORMAT}.")
        if told["digest"] != _digest_of_content(told["content"]):
            raise CheckpointError(f"{path} is not as it was written (digest). What it says cannot be compared with.")
        return told["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None


def _column(path: Path, name: str) -> list[Any]:
    """One at a time, so that damage has the name of a tensor."""
    try:
        return pq.read_table(path, columns=[name], schema=SCHEMA).column(name).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        told = " ".join(str(error).split())
        raise DifferenceError(f"first that differs: {name}. It cannot be read from {path} ({told}).") from None


def _examples(columns: dict[str, list[Any]]) -> list[TrainingExample]:
    return [_example({name: values[i] for name, values in columns.items()}) for i in range(len(columns["sample"]))]


def _example(row: dict[str, Any]) -> TrainingExample:
    """Nobody marks it or reads its text again, so it comes back without."""

    def ids(name: str) -> np.ndarray:
        return np.asarray(row[name] or (), np.int32)

    support = row["engine_support"]
    rollout = Rollout(
        prompt=Prompt(Question(row["prompt_id"], text="", answer="", field=""), ids("prompt_tokens")),
        sample=row["sample"],
        tokens_T=ids("response_tokens"),
        logp_T=np.asarray(row["rollout_logp"] or (), np.float32),
        text="",
        truncated=False,
        version_T=ids("versions"),
        worker=0,
        support_TK=None if support is None else np.asarray(support, np.int32),
    )
    return TrainingExample(rollout, row["reward"], row["advantage"], ids("privileged_tokens"))


def _parts(columns: dict[str, list[Any]]) -> list[list[int]]:
    found: dict[int, dict[int, int]] = {}
    for place, (part, turn) in enumerate(zip(columns["part"], columns["turn"], strict=True)):
        found.setdefault(part, {})[turn] = place
    return [[places[turn] for turn in sorted(places)] for _, places in sorted(found.items())]


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()


def _digest_of_content(content: dict[str, Any]) -> str:
    return _digest(json.dumps(content, sort_keys=True).encode())
