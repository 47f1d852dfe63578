"""Exported folders: companion files are those of the model, and the check computes what the student computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from demopsd_dist.config import Precision, load
from demopsd_dist.util.errors import ConfigError
from launch._export import refuse_bad_export
from tests.unit.models.small_folders import change_tensors, small_folder
from workers.forward import ResponseModel, load_causal_lm
from workers.learner.canary_forward import canary_logp, exported_canary_logp
from workers.learner.saving.export import COMPANIONS, export_model
from workers.weights.canary import canary_tokens

SAMPLING = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 257, "pad_token_id": 256}  # not saved without do_sample
TOKENS = canary_tokens(272, 64)


def exported(source: Path, folder: Path, moved: bool = False) -> ResponseModel:
    """Export a model of the source's folder; the model."""
    causal = load_causal_lm(source, Precision.float32).eval()
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in causal.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    config = load("configs/demo.yaml", ["learner.zero_stage=0"])
    groups = [list(causal.named_parameters())]
    export_model(causal, groups, groups[0], {}, config, model_folder=source, folder=folder, rank=0)
    return ResponseModel(causal)


def test_companions_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source, folder = tmp_path / "model", tmp_path / "student"
    small_folder(source, "qwen3")
    tokenizer_config = source / "tokenizer_config.json"
    tokenizer_config.write_text(json.dumps(json.loads(tokenizer_config.read_text()) | {"own": [1]}, indent=7))
    (source / "generation_config.json").write_text(json.dumps(SAMPLING))
    (source / "LICENSE").write_text("Free.")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (source / "modeling_own.py").write_text("raise SystemExit")
    exported(source, folder)
    expected = {path.relative_to(source) for pattern in COMPANIONS for path in source.glob(pattern) if path.is_file()}
    names = {str(path) for path in expected}
    assert names >= {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names >= {"LICENSE", "additional_chat_templates/tools.jinja"}
    written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert written == expected | {Path("config.json"), Path("model.safetensors")}
    assert [path for path in expected if (source / path).read_bytes() != (folder / path).read_bytes()] == []


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    source, folder = tmp_path / "model", tmp_path / "student"
    small_folder(source, "qwen3")
    for _ in range(2):
        exported(source, folder)
        assert not (folder / "adapter").exists()
        (folder / "adapter").mkdir()  # as of an export with adapters
        (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    exported(source, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "student"]
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_no_sampling_defaults_are_invented(tmp_path: Path) -> None:
    source = tmp_path / "model"
    small_folder(source, "qwen3")
    (source / "generation_config.json").unlink(missing_ok=True)
    exported(source, tmp_path / "student")
    assert not (tmp_path / "student" / "generation_config.json").exists()


def test_the_check_computes_what_the_student_computes(tmp_path: Path) -> None:
    source, folder = tmp_path / "model", tmp_path / "student"
    small_folder(source, "qwen3")
    model = exported(source, folder, moved=True)
    student_T = canary_logp(model, TOKENS, torch.device("cpu"))
    np.testing.assert_allclose(exported_canary_logp(folder, Precision.float32, TOKENS), student_T, atol=1e-6)
    assert np.abs(exported_canary_logp(source, Precision.float32, TOKENS) - student_T).max() > 0.01
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ConfigError, match=r"model.norm.weight"):
        exported_canary_logp(folder, Precision.float32, TOKENS)


def test_a_bad_export_names_the_problem_and_the_checkpoint(tmp_path: Path) -> None:
    from demopsd_dist.util.errors import ExportError

    refuse_bad_export({"problems": []}, tmp_path / "student", None)
    with pytest.raises(
        ExportError, match=r"student is not to be used: no space\. .* weights are in .*step-9, and"
    ) as caught:
        refuse_bad_export({"problems": ["no space"]}, tmp_path / "student", tmp_path / "step-9")
    assert "\n" not in str(caught.value)
