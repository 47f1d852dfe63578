"""Wrong input: one line that names the fix, exit code 2, and nothing started or left behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from demopsd_dist.minisci import MODEL_DIR
from launch.train import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    return tmp_path / "runs"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Inputs with one thing wrong each."""
    records = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?"}]
    (tmp_path / "no_answer.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "x" * 5000, "answer": "2"}))
    shutil.copytree(MODEL_DIR, tmp_path / "no_tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(MODEL_DIR, tmp_path / "no_template", ignore=shutil.ignore_patterns("*.jinja"))
    shutil.copytree(MODEL_DIR, tmp_path / "no_config")
    (tmp_path / "no_config" / "config.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "data.train={0}/none.jsonl",
            "there is no such file. Give a .jsonl, .json, .parquet or .csv file, `hf:owner/name`, or `minisci`.",
        ),
        ("data.test={0}/empty.jsonl", "holds no record."),
        ("data.train={0}/no_answer.jsonl", "line 2: the record has no 'answer' or"),
        ("data.train={0}/long.jsonl", "are longer than rollout.max_prompt_tokens=2048 tokens"),
        (
            "rollout.max_response_tokens=9000 rollout.max_batch_tokens=99999",
            "Lower rollout.max_response_tokens to 2048",
        ),
        ("learner.num_workers=400", "Lower a role's num_workers or cpus_per_worker"),
        ("rollout.gpus_per_worker=1 rollout.num_workers=64 rollout.cpus_per_worker=0.001", "need 64 GPUs; there are"),
        ("learner.zero_stag=1", "Did you mean learner.zero_stage?"),
        ("model.path={0}/no_tokenizer", "has no tokenizer.json; save the tokenizer into it"),
        ("model.path={0}/no_template", "its tokenizer has no chat template. Use an instruct model, or add one."),
        ("model.path={0}/no_config", "is not a JSON object; download or save the model again."),
        ("model.path={0}/nowhere", "there is no such folder. Give a Hugging Face model folder"),
    ],
)
def test_wrong_input(words: str, message: str, runs: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["configs/demo.yaml", f"output_dir={runs}", *words.format(broken).split()])
    said = capsys.readouterr()
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", said.err), said.err
    assert message in said.err
    assert not runs.exists(), "nothing was started"


def test_a_run_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["configs/demo.yaml", f"output_dir={tmp_path / 'file'}"]) == 2
    assert "is a file, or a link to a folder that is not there" in capsys.readouterr().err
    assert main(["configs/demo.yaml", f"output_dir={tmp_path / 'file' / 'runs'}"]) == 2
    assert "cannot make a run folder there" in capsys.readouterr().err


def test_dry_run_shows_settings_and_places(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs/demo.yaml", "--dry-run", "learner.zero_stage=3"]) == 0
    said = capsys.readouterr().out
    assert "zero_stage: 3" in said
    assert "# questions: 4096 train, 192 test, 192 ood" in said
    assert len(re.findall(r"^#  (rollout|teacher|learner) +\d +0\.4 CPU", said, flags=re.MULTILINE)) == 5
