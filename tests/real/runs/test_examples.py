"""Examples that train with real engines: own data and reward, and the notebook cell by cell."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"

pytestmark = pytest.mark.long


def test_own_data_and_reward_train(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "own_data.py", tmp_path)
    words = ["steps=2", "rollout.prompts_per_step=8", "evaluation.samples=2"]
    command = [sys.executable, "own_data.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("accuracy ")
    summary = json.loads((tmp_path / "runs" / "own_data" / "summary.json").read_text())
    assert summary["data"]["train"] == "own-train.jsonl"
    assert 0.1 < summary["accuracy_before"]["average"] < 0.9, "the reward reads the answers"
    assert (tmp_path / "runs" / "own_data" / "report.html").stat().st_size > 100_000


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown_value(source: str, names: dict[str, Any]) -> Any:
    """Value of a cell's last line, if that is an expression; the cell is run."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def without_digits(text: str) -> str:
    """Text with its numbers and line ends left out: accuracies may differ on another machine."""
    return re.sub(r"[\d.]+|\s+", "", text)


def test_the_notebook_runs_and_shows_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code cells run in order; their results are those stored in the notebook, but for numbers."""
    notebook = json.loads((EXAMPLES / "train_and_look.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    compared = 0
    for cell in code_cells(notebook):
        assert cell["execution_count"], "the notebook is shipped executed"
        value = shown_value("".join(cell["source"]), names)
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result" and "text/html" not in output["data"]:
                assert without_digits("".join(output["data"]["text/plain"])) == without_digits(repr(value))
                compared += 1
            elif output["output_type"] == "execute_result":
                assert "<iframe" in value._repr_html_()
                compared += 1
    assert compared >= 3
