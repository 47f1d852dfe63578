"""Folders whose tensors are not those of their config.json are refused before the start, by the first such tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.model_checks import check_model
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.models.whole_model import check_whole_model
from demopsd_dist.util.errors import ConfigError
from tests.unit.models.small_folders import CONFIGS, change_tensors, small_folder
from workers.forward import load_causal_lm

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
Damage = Callable[[Path], None]


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        check_model(load(DEMO, [f"model.path={folder}"]), folder)
    message = str(refused.value)
    assert "\n" not in message
    assert f"model.path={folder}" in message
    return message


def test_a_pointer_of_git_lfs_is_named_before_the_precision_is_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    small_folder(folder, "qwen3")
    config = load(DEMO, [f"model.path={folder}"])
    (weights,) = folder.glob("*.safetensors")
    for content, fix in ((b"version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull`"), (b"x" * 99, "again")):
        weights.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{weights} is no readable safetensors file \(.*\)\. .*{fix}"):
            resolve_precision(config, folder)


def without(*names: str) -> Damage:
    return lambda folder: change_tensors(folder, lambda tensors: [tensors.pop(name) for name in names])


def with_tensor(name: str, *shape: int) -> Damage:
    return lambda folder: change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(shape)}))


def with_setting(name: str, value: object) -> Damage:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {name: value}))

    return change


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def with_index(folder: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "lm_head.weight": "model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("kind", CONFIGS)
def test_whole_folders_are_accepted(kind: str, tmp_path: Path) -> None:
    small_folder(tmp_path, kind)
    check_whole_model(tmp_path, AutoTokenizer.from_pretrained(tmp_path))


EXPERT = "model.layers.0.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("qwen3", without("lm_head.weight"), "lacks 1 tensor of Qwen3ForCausalLM, first lm_head.weight; .* random"),
        (
            "qwen3",
            with_tensor("model.layers.0.mlp.up_proj.bias", 64),
            "1 tensor that .* does not use, first .*bias",
        ),
        (
            "qwen3",
            with_tensor("lm_head.weight", 100, 64),
            r"1 tensor .* lm_head.*: \[100, 64\] in .*, \[272, 64\] in",
        ),
        ("qwen3", truncated, "cannot load the model: .*incomplete metadata"),
        ("qwen3", with_index, "lacks 1 of the 2 files that model.safetensors.index.json names, first model-00001-of"),
        ("qwen3_moe", without(EXPERT), rf"1 of 24 tensors are missing, first {EXPERT}"),
        ("qwen3_moe", with_tensor(EXPERT, 16, 64), rf"1 of 24 .*, first {EXPERT}: \[16, 64\] in .*, \[32, 64\] in"),
        ("glm4_moe", without("model.layers.0.mlp.gate.e_score_correction_bias"), "lacks 1 tensor .*_correction_bias"),
        ("qwen3", with_setting("quantization_config", {"quant_method": "mxfp4"}), "weights quantized by mxfp4"),
    ],
)
def test_folders_that_are_not_whole_are_refused(kind: str, damage: Damage, message: str, tmp_path: Path) -> None:
    small_folder(tmp_path, kind)
    damage(tmp_path)
    assert re.search(message, refusal(tmp_path)), refusal(tmp_path)


def test_fewer_embedding_rows_than_token_ids_are_refused_with_both_numbers(tmp_path: Path) -> None:
    small_folder(tmp_path, "qwen3", vocab_size=260)
    assert "its tokenizer has 267 token ids, but its embedding only 260 rows" in refusal(tmp_path)


def test_tensors_that_transformers_knows_to_be_harmless_are_accepted(tmp_path: Path) -> None:
    small_folder(tmp_path, "qwen3", tie_word_embeddings=True)
    change_tensors(
        tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 16)(tmp_path)
    check_model(load(DEMO, [f"model.path={tmp_path}"]), tmp_path)


def test_learner_and_teacher_refuse_at_loading_too(tmp_path: Path) -> None:
    small_folder(tmp_path, "qwen3")
    without("lm_head.weight")(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks 1 tensor of Qwen3ForCausalLM, first lm_head\.weight"):
        load_causal_lm(tmp_path, None)


def test_the_demo_model_is_whole() -> None:
    check_model(load(DEMO), MODEL_DIR)
