"""A failed start of an engine: one line with vLLM's reason; the full text goes to a file of the run folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError, EngineStartError
from launch._training_run import start_errors_in
from workers.rollout.start_errors import engine_start_error, reason_line

PYDANTIC = (
    "1 validation error for ModelConfig\n"
    "  Value error, Model architectures ['Frob'] are not supported for now. [type=value_error, "
    "input_value=ArgsKwargs((), {'model': ...}), input_type=ArgsKwargs]\n"
    "    For further information visit https://errors.pydantic.dev/2.12/v/value_error"
)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (PYDANTIC, "Value error, Model architectures ['Frob'] are not supported for now."),
        ("No heads.\n\nSee root cause above.\n", "No heads."),
        ("one\ntwo\n", "two"),
        ("", "it gives no reason"),
    ],
)
def test_the_last_line_gives_the_reason(message: str, line: str) -> None:
    assert reason_line(message) == line


def test_the_full_text_is_in_a_file_that_the_error_names(tmp_path: Path) -> None:
    try:
        raise RuntimeError("The engine:\nno kernel for this")
    except RuntimeError as error:
        sent = pickle.loads(pickle.dumps(engine_start_error(3, error)))  # as it comes from a worker's process
    with pytest.raises(EngineStartError) as caught, start_errors_in(RunFolder(tmp_path)):
        raise sent
    path = tmp_path / "errors" / "rollout-3-start.txt"
    assert str(caught.value) == (
        f"rollout 3: vLLM cannot start an engine: RuntimeError: no kernel for this. The full text is in {path}."
    )
    text = path.read_text(encoding="utf-8")
    assert text.startswith("Traceback")
    assert "RuntimeError: The engine:\nno kernel for this" in text


def test_the_projects_own_errors_stay() -> None:
    error = ConfigError("rollout.x=1 is too small. Raise it.")
    assert engine_start_error(0, error) is error
