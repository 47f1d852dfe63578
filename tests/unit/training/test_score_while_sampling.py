"""When finished groups are scored while others are still sampled."""

from __future__ import annotations

from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.methods import resolve_method
from demopsd_dist.training.step_batch import scores_while_sampling
from demopsd_dist.util.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
CORES = [f"{role}.cpus_per_worker=2" for role in ("rollout", "teacher", "learner")]


@pytest.mark.parametrize(
    ("name", "words", "scores"),
    [
        ("demo", [], False),
        ("demo", ["rollout.score_while_sampling=true"], True),
        ("demo", CORES, True),
        ("demo", [*CORES, "teacher.threads=3"], False),
        ("demo", [*CORES, "rollout.score_while_sampling=false"], False),
        ("demo", [*CORES, "deterministic=true"], False),
        ("demo", [*CORES, "method=grpo", "grpo.variant=dapo"], False),
        ("one_gpu", [], True),
        ("node_8gpu", [], True),
        ("node_8gpu", ["rollout.score_while_sampling=false"], False),
    ],
)
def test_stages_that_share_cores_do_not_overlap(name: str, words: list[str], scores: bool) -> None:
    config = load(CONFIGS / f"{name}.yaml", words)
    assert scores_while_sampling(config, resolve_method(config)) is scores


def test_a_deterministic_run_scores_at_the_end() -> None:
    with pytest.raises(ConfigError, match=r"rollout.score_while_sampling=true makes the batches of a scoring call"):
        load(CONFIGS / "demo.yaml", ["deterministic=true", "rollout.score_while_sampling=true"])
