"""Dry runs of every shipped config, in a folder with the files that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR
from launch import plan
from launch.train import main

ROOT = Path(__file__).parents[3]
QUESTIONS = 256  # enough for a step of each config
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/controls/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dry run for a cluster to join, whose size is not checked, with a model of the real one's context length."""
    config = load(path)
    monkeypatch.chdir(tmp_path)
    if config.model.path != "minisci":
        shutil.copytree(MODEL_DIR, config.model.path)
        settings = json.loads((MODEL_DIR / "config.json").read_text()) | {"max_position_embeddings": 262_144}
        (Path(config.model.path) / "config.json").write_text(json.dumps(settings))
        template = Path(config.model.path) / "chat_template.jinja"  # reads a value, as templates of thinking models do
        template.write_text("{% set thinking = enable_thinking %}" + template.read_text(encoding="utf-8"))
    for source in (config.data.train, config.data.test):
        if source is not None and source.endswith(".jsonl"):
            Path(source).parent.mkdir(exist_ok=True)
            lines = [f'{{"prompt": "1+{i}?", "answer": "{1 + i}"}}\n' for i in range(QUESTIONS)]
            Path(source).write_text("".join(lines))
    few = ["data.minisci_train_size=96"] if config.data.train == "minisci" else []
    assert main([str(path), "--dry-run", "ray_address=auto", *few]) == 0, capsys.readouterr().err
    assert f"name: {config.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("one_gpu", "1xh100"),
        ("one_gpu_lora", "1xh100"),
        ("node_8gpu", "8xh100"),
        ("node_8gpu", "8xa100"),
        ("node_8gpu_32b_lora", "8xh100"),
        ("multi_node", "4x8xh100"),
        ("paper_qwen3_4b", "8xh20"),  # the paper's GPUs
        ("paper_qwen3_4b", "8xh100"),
    ],
)
def test_it_fits_where_it_is_for(name: str, gpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fit according to the planner, which knows these models by name."""
    assert plan.main([str(ROOT / "configs" / f"{name}.yaml"), "--gpus", gpus, "--hours", "1"]) == 0
    output = capsys.readouterr().out
    assert "DOES NOT FIT" not in output.partition("Splits of these devices")[0]
    assert "samples/s" in output


def test_without_adapters_it_would_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.lora_rank=0", "model.lora_alpha=32"]
    assert plan.main([str(ROOT / "configs" / "one_gpu_lora.yaml"), "--gpus", "1xh100", *words]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_the_split_of_the_large_model_is_the_planners(capsys: pytest.CaptureFixture[str]) -> None:
    """Plan from another split, with engines of one GPU and a copy for each teacher, which do not fit."""
    words = ["rollout.tensor_parallel=1", "teacher.shards=1", "rollout.num_workers=2"]
    assert plan.main([str(ROOT / "configs" / "node_8gpu_32b_lora.yaml"), "--gpus", "8xh100", *words]) == 1
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Settings of the fastest split: ")
    )
    planned = load(ROOT / "configs" / "node_8gpu.yaml", line.partition(": ")[2].split())
    config = load(ROOT / "configs" / "node_8gpu_32b_lora.yaml")
    for one, other in (
        (planned.rollout, config.rollout),
        (planned.teacher, config.teacher),
        (planned.learner, config.learner),
    ):
        assert one.num_workers == other.num_workers
    assert (planned.rollout.tensor_parallel, planned.rollout.ahead) == (2, 1)
    assert planned.teacher.shards == config.teacher.shards == 3


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_the_readme_of_the_configs_names_it(path: Path) -> None:
    assert f"| `{path.name}` |" in (ROOT / "configs" / "README.md").read_text()


def test_the_papers_settings_are_the_papers() -> None:
    """Hyperparameters of arXiv 2607.02502, appendix B, and of its table 4 for physics."""
    config = load(ROOT / "configs" / "paper_qwen3_4b.yaml")
    assert config.model.path.endswith("Qwen3-4B-Instruct-2507")
    demopsd, rollout, learner = config.demopsd, config.rollout, config.learner
    assert (demopsd.top_k, demopsd.alpha_max, demopsd.gate_sensitivity, demopsd.floor) == (100, 0.15, 100.0, 1e-8)
    assert (rollout.prompts_per_step, rollout.group_size, rollout.temperature) == (64, 8, 1.0)
    assert (rollout.max_prompt_tokens, rollout.max_response_tokens, config.privileged.max_tokens) == (
        2048,
        16_384,
        10_240,
    )
    assert (learner.learning_rate, learner.warmup_steps, config.teacher.ema_rate) == (1e-6, 10, 0.05)
    assert (config.evaluation.samples, config.evaluation.temperature, demopsd.importance_clip) == (16, 0.7, 2.0)
