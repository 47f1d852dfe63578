"""The run folder: what a run leaves behind, and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, to_yaml
from demopsd_dist.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """`config.yaml`, `metrics.jsonl`, `samples/`, `summary.json`, `report.html` and `student/`, a Hugging Face model
    folder."""

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
            (folder.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            return folder
        raise ConfigError(f"output_dir={parent} holds {len(candidates)} runs named {config.name}. Choose another name.")

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def write_summary(self, summary: dict[str, Any]) -> None:
        (self.path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
