"""Examples that need no engine: the loss in a trainer of one's own, and the SLURM job with a stand-in for sbatch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from demopsd_dist.minisci import MODEL_DIR

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_on_the_page() -> None:
    text = (ROOT / "docs" / "from_python.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.suffix) == sorted(
        path.name for path in EXAMPLES.iterdir() if f"(../examples/{path.name})" in text
    )


def test_the_loss_trains_a_model_in_a_loop_of_plain_torch(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("loss_in_your_trainer")
    before = [weight.detach().clone() for weight in module.student.parameters()]
    losses = module.train(steps=1, questions_per_step=2)
    assert 0.01 < losses[0] < 2
    assert "step 1  right " in capsys.readouterr().out
    assert any(not torch.equal(old, new) for old, new in zip(before, module.student.parameters(), strict=True))
    moved = [float((old - mean).abs().max()) for old, mean in zip(before, module.ema.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1, "the EMA copy follows slowly"


def test_a_reward_of_the_own_data_example() -> None:
    from demopsd_dist.data.rewards import Question, RewardResult

    reward = example("own_data").within_one_percent
    question = Question("own/1", "1+1?", "200", "sums")
    assert reward("<answer>201</answer>", question) == 1.0
    assert reward("<answer>203</answer>", question) == 0.0
    assert reward("none", question) == RewardResult(0.0, feedback="End with the number alone.")


def test_the_slurm_job_is_checked_and_submitted(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/submitted"\necho 4711\n')
    sbatch.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DEMOPSD": str(Path(sys.executable).with_name("demopsd")),
        "SBATCH_OPTIONS": "--nodes=1 --time=1:00:00",
        "OUT": str(tmp_path),
    }
    sizes = ["rollout.max_prompt_tokens=1024", "rollout.max_response_tokens=64", "privileged.max_tokens=2048"]
    data = ["data.train=minisci", "data.test=minisci", "data.minisci_train_size=256", "data.minisci_test_size=16"]
    words = [f"model.path={MODEL_DIR}", "model.chat_template_kwargs.enable_thinking=null", *sizes, *data]
    command = ["bash", str(EXAMPLES / "slurm_job.sh")]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "submitted").read_text().split() == [
        *("--parsable", "--nodes=1", "--time=1:00:00", "launch/slurm.sbatch", "multi_node"),
        *words,
    ]
    assert "job 4711: squeue --job 4711" in done.stdout
    assert "placement of the roles" in (tmp_path / "dry-run.txt").read_text()
    refused = subprocess.run([*command, "stepps=3"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "there is no setting stepps" in refused.stderr
