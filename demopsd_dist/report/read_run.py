"""Reader of a run folder that is finished, still being written, or cut off in the middle of a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import DataError


@dataclass(frozen=True)
class RunFiles:
    """Records of a run so far. `steps` and `evaluations` are the lines of `metrics.jsonl`, in order."""

    name: str
    config: dict[str, Any]  # `learner.zero_stage` -> value
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    summary: dict[str, Any]  # empty until the run is done
    sample_files: list[Path]
    evaluation_files: list[Path] = field(default_factory=list)


def read_run(path: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        DataError: the folder is not a run folder, or its summary is damaged.
    """
    folder = RunFolder(path)
    if not folder.metrics.is_file():
        raise DataError(f"{path} is no run folder: it has no {folder.metrics.name}. Name a folder in runs/.")
    summary = folder.summary
    steps: dict[int, dict[str, Any]] = {}
    evaluations: dict[tuple[int, str], dict[str, Any]] = {}
    for line in lines_of(folder.metrics):
        if "evaluation" in line:
            evaluations[line["step"], line["evaluation"]] = line
        elif "step" in line:
            steps[line["step"]] = line  # a run that continued from a checkpoint has some steps twice: the last counts
    return RunFiles(
        name=path.resolve().name,
        config=read_config(path),
        steps=[steps[step] for step in sorted(steps)],
        evaluations=[evaluations[key] for key in sorted(evaluations, key=lambda key: key[0])],
        summary=_read_summary(summary) if summary.is_file() else {},
        sample_files=samples.files(folder.samples),
        evaluation_files=samples.files(folder.evaluations),
    )


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise DataError(f"{path} is damaged. Remove it: the report is then that of a run which has not ended.")
    return summary


def read_config(path: Path) -> dict[str, Any]:
    """Settings of the run by dotted name, as written, including those of an older version."""
    config = path / "config.yaml"
    return flatten(OmegaConf.to_container(OmegaConf.load(config))) if config.is_file() else {}


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file, without a last line that is still being written."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.endswith("\n"):
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(record, dict):
                    yield record


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"learner": {"zero_stage": 2}}` as `{"learner.zero_stage": 2}`."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{prefix}{name}.").items()}
