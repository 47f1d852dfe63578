"""A model that the learners refuse ends the start before any rollout engine exists."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import ConfigError
from tests.real.conftest import demo
from workers.actors import RayActors
from workers.rollout.worker import RolloutWorker

READY, ENGINE = "ready", "engine"


class StartRecorder(RolloutWorker):
    """Worker that leaves a mark at each part of its start, and is ready for an engine at once."""

    async def import_libraries(self) -> None:
        (Path(self._config.output_dir) / READY).touch()

    async def start(self, *, random_weights: bool = False) -> None:
        (Path(self._config.output_dir) / ENGINE).touch()


def test_no_engine_starts_for_a_model_that_cannot_merge_responses(ray_here: None, tmp_path: Path) -> None:
    """Bloom's attention takes no positions, which its configuration does not say: only the trial finds it."""
    folder = tmp_path / "bloom"
    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "BUILD.json"))
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=272, hidden_size=64, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=257)
    BloomForCausalLM(config).save_pretrained(folder)
    words = [f"model.path={folder}", f"output_dir={tmp_path}", "rollout.num_workers=1", "learner.num_workers=1"]
    actors = RayActors(demo(*words), folder, rollout_class=StartRecorder)
    try:
        with pytest.raises(ConfigError, match=r"merges responses .* BloomForCausalLM .*Set model.tree_tokens=0\.$"):
            asyncio.run(actors.start())
    finally:
        actors.stop()
    assert (tmp_path / READY).exists()
    assert not (tmp_path / ENGINE).exists()
