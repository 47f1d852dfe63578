"""Folders that cannot be loaded are refused by the dry run: exit code 2 and one line with the reason."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3Config, Qwen2_5_VLConfig

from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.model_checks import check_model
from demopsd_dist.util.errors import ConfigError
from launch.train import main

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SMALL = ["data.minisci_train_size=24", "data.minisci_test_size=4"]


def folder_with(folder: Path, file: str, settings: dict[str, Any]) -> Path:
    """The demo's model folder with other settings in one of its JSON files."""
    shutil.copytree(MODEL_DIR, folder)
    path = folder / file
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | settings), encoding="utf-8")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_model(load(DEMO, [f"model.path={folder}", "model.tree_tokens=0"]), folder)
    message = str(caught.value)
    assert message.startswith(f"model.path={folder}: ")
    assert "trust_remote_code" not in message
    return message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": "many"}, "transformers cannot load config.json: .*'hidden_size' expected int"),
        ({"rope_parameters": 7}, "transformers cannot load config.json: .*'rope_parameters'"),
        ({"layer_types": ["full_attention"]}, "transformers cannot load config.json: .*`layer_types` \\(1\\)"),
        ({"model_type": "frobnicate"}, "model type `frobnicate` .*Use a model that transformers [0-9.]+ knows"),
        (
            {"model_type": "frobnicate", "auto_map": {"AutoConfig": "configuration_x.XConfig"}},
            re.escape("config.json needs Python code of the folder (auto_map), which is never run. Use a model"),
        ),
    ],
)
def test_a_configuration_that_cannot_be_loaded(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(folder_with(tmp_path / "model", "config.json", settings)))


def test_a_tokenizer_that_cannot_be_loaded_or_has_no_template(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "config.json", {})
    template = folder / "chat_template.jinja"
    assert template.is_file()
    template.unlink()
    assert "its tokenizer has no chat template" in refusal(folder)
    (folder / "tokenizer.json").write_text('{"model":', encoding="utf-8")
    assert "transformers cannot load its tokenizer: " in refusal(folder)


@pytest.mark.parametrize(
    ("config", "processor", "message"),
    [
        (
            Gemma3Config,
            None,
            "the processor of its vision part (vLLM loads it for text too): Can't load image processor",
        ),
        (
            Qwen2_5_VLConfig,
            {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"},
            "needs a package that is not installed: Qwen2VLVideoProcessor requires the Torchvision library",
        ),
    ],
)
def test_a_vision_model_whose_processor_cannot_be_loaded(
    tmp_path: Path, config: type, processor: dict[str, Any] | None, message: str
) -> None:
    if processor is not None and find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed: nothing is missing")
    folder = folder_with(tmp_path / "model", "config.json", {})
    config().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    assert message in refusal(folder)


def test_the_dry_run_refuses_a_template_and_shows_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path / "model", "config.json", {})
    command = [str(DEMO), f"model.path={folder}", "--dry-run", *SMALL]
    assert main(command) == 0
    assert re.search(
        r"^#   student's prompt of .*: <\|user\|>.*<\|assistant\|>$", capsys.readouterr().out, re.MULTILINE
    )
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("message['content']", "''"), encoding="utf-8")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: model.path={folder}: its chat template leaves out or changes the question")


@pytest.mark.parametrize("model_type", ["bloom", "apertus"])
def test_a_model_that_vllm_computes_otherwise_needs_a_tolerance(model_type: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "config.json", {"model_type": model_type})
    message = refusal(folder)
    assert f"model type {model_type} differs between engine and learner: vLLM" in message
    allowed = re.search(r"Set (weights\.max_logp_diff=\S+) to", message)
    assert allowed is not None
    with pytest.raises(ConfigError, match="tensors"):  # the next check: the tensors are those of another model
        check_model(load(DEMO, [f"model.path={folder}", "model.tree_tokens=0", allowed[1]]), folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "phimoe"}, "router of its experts"),
        ({"model_type": "lfm2"}, "vLLM reads block_dim, which config.json lacks"),
        ({"model_type": "lfm2", "block_dim": 64}, "rotates its queries and keys wrongly.*rollout.gpus_per_worker"),
        ({"model_type": "minimax_m2"}, "weights of its norms a second time"),
        (
            {"model_type": "cohere2", "sliding_window": 64, "layer_types": ["sliding_attention"] * 2},
            "in its sliding_window=64 vLLM counts one token more than transformers.* at most 64 together",
        ),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 16}, "latent attention .*rollout.gpus_per_worker"),
        ({"model_type": "mamba"}, "no selective scan"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention"] * 4}, "Set model.precision=bfloat16"),
    ],
)
def test_a_model_that_vllm_cannot_run_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "config.json", settings)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = settings.get("layer_types", [])
    written["layer_types"] = layers[:1] * written["num_hidden_layers"]
    if not layers:
        del written["layer_types"]
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    assert re.search(message, refusal(folder))
