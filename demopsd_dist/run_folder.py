"""The run folder: what a run leaves behind, and where."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, to_yaml
from demopsd_dist.errors import ConfigError, RunFolderError

CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """`config.yaml`, `metrics.jsonl`, `ledger.sqlite`, `checkpoints/`, `summary.json` and `student/`, a Hugging Face
    model folder."""

    path: Path

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """`output_dir/name`, or the first free `name-2`, `name-3`, ...: an earlier run is never overwritten."""
        parent = Path(config.output_dir)
        candidates = [config.name] + [f"{config.name}-{i}" for i in range(2, 10_000)]
        for name in candidates:
            try:
                (parent / name).mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(f"output_dir={parent}: cannot make a run folder there ({error.strerror}).") from None
            folder = cls(parent / name)
            folder.config.write_text(to_yaml(config), encoding="utf-8")
            return folder
        raise ConfigError(f"output_dir={parent} holds {len(candidates)} runs named {config.name}. Choose another name.")

    @classmethod
    def newest(cls, config: Config) -> RunFolder | None:
        """Of this name in `output_dir`; None where there is none."""
        parent, name = Path(config.output_dir), re.compile(rf"{re.escape(config.name)}(?:-(\d+))?")
        found = [path for path in parent.glob("*") if name.fullmatch(path.name) and (path / CONFIG).is_file()]
        return cls(max(found, key=lambda path: (path / CONFIG).stat().st_mtime_ns)) if found else None

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write_summary(self, summary: dict[str, Any]) -> None:
        replace_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file that is whole at any time.

    Raises:
        RunFolderError: it cannot be written; what was there is as it was.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.rename(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}. Make room or mend the disk, then resume.") from None
