"""Identity of a run and digests of its inputs, in `inputs.json` of the run folder: a resume on other inputs is refused.

The data set counts as loaded: every question of every split, in order. Of the model folder all files count that decide
weights, tokens or templates. A file of up to `WHOLE_BYTES` is read whole; of a larger one its size and `SAMPLES` blocks
at equal distances are, so that a few changed bytes in one may pass unseen while another model does not.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from demopsd_dist.data.records import Question
from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.util.errors import ConfigError

WHOLE_BYTES = 64 << 20
SAMPLES, SAMPLE_BYTES = 64, 1 << 20
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
NOT_RECORDED = "not recorded"


def digest_of_file(path: Path, whole_bytes: int = WHOLE_BYTES, sample_bytes: int = SAMPLE_BYTES) -> str:
    """Size in bytes and digest of a file, by its whole content or by samples (see the file's docstring).

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            hasher = xxhash.xxh3_128()
            if size <= whole_bytes:
                hasher.update(file.read())
            else:
                for i in range(SAMPLES):
                    file.seek((size - sample_bytes) * i // (SAMPLES - 1))
                    hasher.update(file.read(sample_bytes))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from None
    return f"{size}:{hasher.hexdigest()}"


def input_digests(questions: Mapping[Any, Sequence[Question]], model_folder: Path) -> dict[str, str]:
    """Digests of the inputs: `data.train` and so on for each split with questions, and a path for each file of the
    model folder.

    Raises:
        ConfigError: a file of the model folder cannot be read.
    """
    digests: dict[str, str] = {}
    for split, split_questions in questions.items():
        if split_questions:
            hasher = xxhash.xxh3_128()
            for question in split_questions:
                hasher.update(json.dumps(_learned(question), sort_keys=True, default=str).encode())
            digests[f"data.{split}"] = f"{len(split_questions)}:{hasher.hexdigest()}"
    files = sorted(path for path in model_folder.iterdir() if path.suffix in MODEL_SUFFIXES and path.is_file())
    return digests | {f"model.path/{path.name}": digest_of_file(path) for path in files}


def _learned(question: Question) -> dict[str, Any]:
    """Part of a question that its digest covers: all but the note of how much of its text is `data.suffix`."""
    return {name: value for name, value in asdict(question).items() if name != "suffix"}


def write_inputs(folder: RunFolder, digests: Mapping[str, str]) -> None:
    """Write the digests of a run; its identity stays, or is drawn if it has none.

    Raises:
        RunFolderError: the file cannot be written.
    """
    content = {"run": folder.identity or secrets.token_hex(8), "digests": dict(digests)}
    replace_text(folder.inputs, json.dumps(content, indent=1) + "\n")


def changed_inputs(folder: RunFolder, digests: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Inputs that differ from those of the run, by name: (before, now). Files of the model folder that only one side
    has count too. Runs of earlier versions have no record: one entry `inputs`."""
    recorded = folder.read_inputs().get("digests")
    if recorded is None:
        return {"inputs": (NOT_RECORDED, "recorded from now on")}
    names = sorted(recorded.keys() | digests.keys())
    pairs = {name: (recorded.get(name, "absent"), digests.get(name, "absent")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def refuse_other_inputs(folder: RunFolder, changed: Mapping[str, tuple[str, str]]) -> None:
    """Refuse changed inputs of a run that recorded its own.

    Raises:
        ConfigError: naming each changed input, with size or count and digest on both sides.
    """
    conflicts = {name: pair for name, pair in changed.items() if pair[0] != NOT_RECORDED}
    if conflicts:
        listed = ", ".join(f"{name} ({old} -> {new})" for name, (old, new) in conflicts.items())
        raise ConfigError(
            f"{folder.path} was run on other inputs, which change what is learned: {listed}. Bring back those of the "
            "run, or add --allow-config-change."
        )
