"""Starting point of a run: a new run folder, or the folder and checkpoint of an earlier run that is continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demopsd_dist.config import Config, changes, changes_of_training, load
from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints, checkpoint_at
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.run_inputs import changed_inputs, refuse_other_inputs
from demopsd_dist.util.errors import ConfigError


@dataclass(frozen=True)
class RunStart:
    """Starting point of a run: a new run folder, or one to resume in with the checkpoint and the changed settings."""

    folder: RunFolder
    resumes: bool = False
    checkpoint: Checkpoint | None = None
    changed: Mapping[str, tuple[object, object]] = field(default_factory=dict)

    def lines(self, config: Config) -> list[str]:
        """Lines of a dry run: which run is continued, after which step, and the settings that have changed."""
        damaged: list[str] = []
        saved = Checkpoints(self.folder.checkpoints, config.checkpoint.keep)
        checkpoint = self.checkpoint or saved.newest_good(damaged.append)
        where = "from its start, as it has no checkpoint" if checkpoint is None else f"from {checkpoint.path}"
        after = 0 if checkpoint is None else checkpoint.step
        first = f"continues {self.folder.path} {where}: {after} of {config.steps} steps are done"
        return [*damaged, first, *(f"changed {key}: {old} -> {new}" for key, (old, new) in self.changed.items())]


def find_resume_point(
    config: Config, inputs: Mapping[str, str], at: Path | None, allow_config_change: bool
) -> RunStart:
    """Run folder and checkpoint to resume from.

    Args:
        inputs: digests of data and model folder (`input_digests`).
        at: a run folder, or a checkpoint in one; None is the newest run of this name.

    Raises:
        ConfigError: there is no such run; or it is done; or settings or inputs have changed that would change what is
            learned.
        CheckpointError: the named checkpoint is damaged.
    """
    checkpoint = None
    if at is None:
        folder = RunFolder.newest(config)
        if folder is None:
            raise ConfigError(f"--resume: there is no run named {config.name} in output_dir={config.output_dir}.")
    elif (at / "config.yaml").is_file():
        folder = RunFolder(at)
    else:
        checkpoint = checkpoint_at(at)
        folder = RunFolder(at.resolve().parents[1])
    before = load(folder.config)
    conflicts = changes_of_training(before, config)
    if conflicts and not allow_config_change:
        listed = ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in conflicts.items())
        raise ConfigError(
            f"{folder.path} was run with other settings, which change what is learned: {listed}. Use those of the run, "
            "or add --allow-config-change."
        )
    changed = changed_inputs(folder, inputs)
    if not allow_config_change:
        refuse_other_inputs(folder, changed)
    if checkpoint is None and _is_done(folder, config.steps):
        raise ConfigError(
            f"{folder.path} is done: all {config.steps} steps, with {folder.student} and {folder.summary}. Add "
            f"steps=N with more steps to train on, or leave out {'--resume' if at is None else '--resume-from'} for a "
            "new run."
        )
    return RunStart(folder, True, checkpoint, {**changes(before, config), **changed})


def _is_done(folder: RunFolder, steps: int) -> bool:
    """Whether the run's summary is that of its last step, and its student was exported without a problem."""
    try:
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
        return summary["steps"] >= steps and not summary["export"]["problems"] and folder.student.is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        return False
