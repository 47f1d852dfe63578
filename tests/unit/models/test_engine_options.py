"""Options of vLLM that a config passes on: known by name and type, and known to the vLLM of the lock."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.engine_options import ENGINE_OPTIONS, refuse_other_options, table
from demopsd_dist.models.model_checks import check_model
from demopsd_dist.util.errors import ConfigError

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("given", "on_gpu", "message"),
    [
        (
            {"kv_cache_type": "fp8"},
            True,
            "rollout.engine.kv_cache_type is not an option .* Did you mean kv_cache_dtype?",
        ),
        (
            {"seed": 3},
            True,
            "rollout.engine.seed is not an option of vLLM that can be set here. Known are kv_cache_dtype,",
        ),
        ({"block_size": "16"}, True, "rollout.engine.block_size=16 must be of type int, not str"),
        ({"block_size": True}, True, "block_size=True must be of type int, not bool"),
        ({"quantization": "fp8"}, False, "quantization has an effect on GPUs alone, and rollout.gpus_per_worker=0"),
    ],
)
def test_other_options_are_refused(given: dict[str, Any], on_gpu: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refuse_other_options(given, on_gpu)


def test_known_options_pass() -> None:
    refuse_other_options({"kv_cache_dtype": "fp8", "disable_cascade_attn": True}, on_gpu=True)
    refuse_other_options({"block_size": 64}, on_gpu=False)
    refuse_other_options({}, on_gpu=False)


def test_a_config_holds_them_as_they_are_written(tmp_path: Path) -> None:
    """By a word for the whole mapping, and by one for a single option; the check of the model refuses them."""
    for words in (["rollout.engine={kv_cache_dtype: fp8}"], ["rollout.engine.kv_cache_dtype=fp8"]):
        config = load(DEMO, words)
        assert config.rollout.engine == {"kv_cache_dtype": "fp8"}
        with pytest.raises(ConfigError, match="kv_cache_dtype has an effect on GPUs alone"):
            check_model(config, MODEL_DIR)


def test_vllm_knows_every_option() -> None:
    vllm = pytest.importorskip("vllm.engine.arg_utils")
    known = {item.name for item in dataclasses.fields(vllm.EngineArgs)}
    assert set(ENGINE_OPTIONS) <= known


def test_the_tuning_page_lists_every_option() -> None:
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in text
    assert all(re.search(r"[Rr]ounding|effect|mismatch", option.meaning) for option in ENGINE_OPTIONS.values())


def test_a_deterministic_run_needs_seeds() -> None:
    load(DEMO, ["rollout.request_seeds=false"])
    with pytest.raises(ConfigError, match=r"rollout.request_seeds=false makes a sample depend on the others"):
        load(DEMO, ["rollout.request_seeds=false", "deterministic=true"])
