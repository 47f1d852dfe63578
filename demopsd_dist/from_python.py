"""A training run from a script or a notebook: `train` runs the command `demopsd train` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from demopsd_dist.config.as_written import is_quoted, quoted
from demopsd_dist.util.die_with_parent import die_with_parent
from demopsd_dist.util.errors import CollapseError, ConfigError, DemoPSDError

_RUN_FOLDER = re.compile(r"run folder (.+?)   seed \d+   model ")
_ERROR = "error: "
_TERMINAL = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")
"""Variables that a notebook's kernel sets and by which the output would count as a terminal's."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done.

    Example: `FinishedRun(Path("runs/demo"), {"accuracy_after": {"average": 0.585, "ood": 0.314}, "steps": 40})`

    Attributes:
        folder: the run folder.
        summary: content of its `summary.json`.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def accuracy_before(self) -> Mapping[str, float] | None:
        """Mean accuracies before the first step, 0 to 1: `average` and each field of the test set, and `ood`. None if
        not measured."""
        return self.summary.get("accuracy_before")

    @property
    def accuracy_after(self) -> Mapping[str, float] | None:
        """Mean accuracies after the last step, as `accuracy_before`. None if not measured."""
        return self.summary.get("accuracy_after")

    @property
    def report(self) -> Path | None:
        """Report page of the run; None where it was not written (`sinks.report=false`)."""
        page = self.folder / "report.html"
        return page if page.is_file() else None

    @property
    def student(self) -> Path:
        """Folder of the trained model, a Hugging Face model folder."""
        return self.folder / "student"

    def _repr_html_(self) -> str:
        """Accuracies and the report as a frame, for a notebook whose server sees the run folder."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{(self.accuracy_before or {}).get(name, float('nan')):.1%}</td>"
            f"<td>{value:.1%}</td></tr>"
            for name, value in (self.accuracy_after or {}).items()
        )
        table = f"<table><tr><th>accuracy</th><th>before</th><th>after</th></tr>{rows}</table>"
        if self.report is None:
            return table
        page = self.report.relative_to(Path.cwd()) if self.report.is_relative_to(Path.cwd()) else self.report
        return f'{table}<iframe src="{quote(str(page))}" title="report" width="100%" height="700"></iframe>'


def train(
    config: str | Path | Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    show_output: bool = True,
) -> FinishedRun:
    """Train, and wait until the run is done.

    The run is the command `demopsd train` with this Python, in a new process: engines, signals and the end of all
    processes are as on the command line, and nothing of a notebook stays on the GPU. Interrupted (Ctrl-C, or the
    notebook's stop), it saves and ends; `resume=True` continues it.

    Example:
        >>> from demopsd_dist import train
        >>> run = train("demo", {"steps": 10, "learner.learning_rate": 1e-4})
        >>> run.accuracy_after["average"], run.report

    Args:
        config: a YAML file, the name of a shipped config, or the settings themselves as nested mappings.
        settings: settings that replace those of the config, by dotted name.
        resume: continue the newest run of this name.
        show_output: print the run's lines while it goes.

    Raises:
        ConfigError: a setting, the model or the data cannot be used, or packages are missing; nothing was started.
        CollapseError: the alarm has ended the run.
        DemoPSDError: the run has failed; its folder stays, and `resume=True` continues it.
        KeyboardInterrupt: the run was interrupted, and has saved.
    """
    words = [f"{name}={_as_word(value)}" for name, value in (settings or {}).items()]
    with _config_path(config) as path:
        command = [sys.executable, "-u", "-m", "demopsd_dist", "train", path, *words, *["--resume"] * resume]
        code, lines = _run_to_its_end(command, show_output)
    if code:
        _raise_error(code, lines)
    folder = next(Path(found[1]) for line in lines if (found := _RUN_FOLDER.match(line))).absolute()
    return FinishedRun(folder, json.loads((folder / "summary.json").read_text(encoding="utf-8")))


@contextmanager
def _config_path(config: str | Path | Mapping[str, Any]) -> Iterator[str]:
    """Path or name of the config; a temporary file for one that is given as a mapping."""
    if not isinstance(config, Mapping):
        yield str(config)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        yield str(path)


def _as_word(value: object) -> str:
    """Value of a setting as the command line takes it: text as it is, in quotes where it has quotes of its own;
    all else as JSON. None, an empty text and `null` are null."""
    if not isinstance(value, str | Path):
        return json.dumps(value)
    text = str(value)
    return quoted(text) if is_quoted(text) else text


def _run_to_its_end(command: list[str], show_output: bool) -> tuple[int, list[str]]:
    """Run a command, and print its lines as they come; its exit code and lines.

    An interrupt is passed on to it once, and then its end is waited for.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _TERMINAL}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    lines: list[str] = []
    interrupted = False
    while True:
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if show_output:
                    print(lines[-1], flush=True)
            return process.wait(), lines
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM if interrupted else signal.SIGINT)
            interrupted = True


def _raise_error(code: int, lines: list[str]) -> None:
    """Raise the error of a run that did not end well, with its last message."""
    if code == 130:
        raise KeyboardInterrupt
    messages = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    message = (
        messages[-1] if messages else "\n".join([f"the run ended with exit code {code}. Its last lines:", *lines[-20:]])
    )
    raise {ConfigError.exit_code: ConfigError, CollapseError.exit_code: CollapseError}.get(code, DemoPSDError)(message)
