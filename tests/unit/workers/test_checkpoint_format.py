"""Views of a model's tensors are bit for bit the tensors of its checkpoint, also out of the bytes of a publish."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import ConfigError
from tests.unit.models.small_folders import small_folder
from workers.forward import load_causal_lm
from workers.weights.buckets import pack_bucket, unpack_bucket
from workers.weights.checkpoint_format import as_checkpoint, checkpoint_views
from workers.weights.tensor_groups import group_by_bytes, persistent_buffers


@pytest.mark.parametrize("bucket_bytes", [1 << 10, 1 << 30])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "mixtral", "glm4_moe", "deepseek_v3", "gpt2"])
def test_a_publish_holds_the_files_tensors(kind: str, bucket_bytes: int, tmp_path: Path) -> None:
    small_folder(tmp_path, kind)
    model = load_causal_lm(tmp_path, None)
    named = [*model.named_parameters(), *persistent_buffers(model)]
    views = checkpoint_views(model, named)
    published = {
        name: tensor.clone()
        for index, group in enumerate(group_by_bytes(named, bucket_bytes))
        for name, tensor in as_checkpoint(unpack_bucket(pack_bucket(0, index, group)), views)
    }
    files = load_file(tmp_path / "model.safetensors")
    assert published.keys() == files.keys()
    assert all(torch.equal(published[name], files[name]) for name in files)
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    assert (fused in views) == (fused in dict(named))
    assert bool(views) == (fused in views), "a model without conversions has no views"


def test_persistent_buffers_are_those_of_the_state_dict(tmp_path: Path) -> None:
    small_folder(tmp_path, "glm4_moe")
    model = load_causal_lm(tmp_path, None)
    buffers = dict(persistent_buffers(model))
    assert list(buffers) == ["model.layers.0.mlp.gate.e_score_correction_bias"]
    assert len(list(model.named_buffers())) > len(buffers), "inverse frequencies are no part of the weights"
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert buffers.keys() | parameters.keys() == model.state_dict().keys()
    assert persistent_buffers(load_causal_lm(MODEL_DIR, None)) == []


def test_a_checkpoint_that_must_be_computed_is_refused(tmp_path: Path) -> None:
    from transformers.core_model_loading import Chunk, WeightConverter

    small_folder(tmp_path, "qwen3")
    model = load_causal_lm(tmp_path, None)
    model._weight_conversions = [
        WeightConverter("self_attn.kv.weight", ["self_attn.k_proj.weight", "self_attn.v_proj.weight"], [Chunk(dim=0)])
    ]
    with pytest.raises(ConfigError, match=r"Qwen3ForCausalLM holds model\.layers\.0\.self_attn\.kv\.weight in"):
        checkpoint_views(model, list(model.named_parameters()))
