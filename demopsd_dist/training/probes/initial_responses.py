"""Responses of the initial model with its log-probabilities, `initial_responses.npz` of the run folder.

The distance of later weights to the initial model is measured on them (`drift.py`). The file holds arrays alone and
cannot run code when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.data.records import Logp, Tokens
from demopsd_dist.run_record.folder import replacing
from demopsd_dist.util.errors import CheckpointError


@dataclass(frozen=True)
class InitialResponse:
    """A response that the initial model sampled, and its log-probabilities on its own most likely tokens."""

    prompt: Tokens
    tokens_T: Tokens
    support_TK: Tokens
    logp_TA: Logp  # K + 1 atoms, the tail last


def write(path: Path, responses: Sequence[InitialResponse]) -> None:
    """Write the responses.

    Raises:
        RunFolderError: the file cannot be written.
    """
    arrays: dict[str, NDArray] = {
        f"{i}/{item.name}": getattr(response, item.name)
        for i, response in enumerate(responses)
        for item in fields(InitialResponse)
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes a flag by keyword too


def read(path: Path) -> list[InitialResponse]:
    """Read the responses.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [item.name for item in fields(InitialResponse)]
            count = len(file.files) // len(names)
            return [InitialResponse(**{name: file[f"{i}/{name}"] for name in names}) for i in range(count)]
    except Exception as error:  # zipfile and NumPy raise errors of many types for damaged bytes
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
