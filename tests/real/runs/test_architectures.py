"""Tiny models of several architectures through the trainer, chosen for how they differ.

`python -m benchmarks.models` has all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.common.timed_runs import DEMO
from benchmarks.models.kept_processes import KeptProcesses
from benchmarks.models.train_row import WORDS, measure_row
from benchmarks.models.zoo import ZOO
from demopsd_dist.config import load
from demopsd_dist.minisci import MODEL_DIR

LARGEST_NATS = 1e-4
TRAIN = {
    "llama": "more embedding rows than token ids",
    "qwen3_tied": "head tied to the embedding",
    "gpt2": "learned positions, other names in config.json",
    "mistral_window": "attention window, so rows cannot merge",
    "gemma2": "soft caps of logits and attention scores",
    "granite": "scaled logits",
    "gemma4": "soft cap, a persistent buffer in each layer",
    "qwen3_moe": "experts",
    "mixtral": "experts with other names in memory than in files",
    "glm4_moe": "experts with a persistent buffer",
    "qwen2_lora": "adapters",
    "falcon_h1": "state-space layers",
}
REFUSED = {"phi3_longrope": "long"}


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def processes(ray_here: None) -> Iterator[KeptProcesses]:
    processes = KeptProcesses(load(DEMO, list(WORDS)), MODEL_DIR)
    yield processes
    processes.end()


@pytest.mark.parametrize("name", TRAIN)
def test_it_trains_and_exports(name: str, processes: KeptProcesses) -> None:
    outcome = measure_row(ZOO[name], processes)
    assert outcome.result == "trains", f"{outcome.where}: {outcome.reason}"
    assert outcome.logp_diff is not None
    assert outcome.canary_diff is not None
    assert outcome.export_diff is not None
    assert max(outcome.logp_diff, outcome.canary_diff, outcome.export_diff) <= LARGEST_NATS


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_an_engine_starts(name: str, processes: KeptProcesses) -> None:
    outcome = measure_row(ZOO[name], processes)
    assert outcome.result == "refused"
    assert outcome.reason is not None
    assert REFUSED[name] in outcome.reason
