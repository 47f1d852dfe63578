"""Learners and teacher come back from a checkpoint as they were, also in another number of ranks and ZeRO stage."""

from __future__ import annotations

import asyncio
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from demopsd_dist.config import Offload
from demopsd_dist.data.records import ScoredExample
from demopsd_dist.util.errors import CheckpointError
from tests.real.conftest import Ranks
from tests.real.roles.test_zero import scored as scored  # a fixture
from tests.unit.run_record.sample_rows import packed
from workers.learner.group import LearnerGroup


def steps(group: LearnerGroup, scored: list[ScoredExample], count: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each of some steps on the same batch."""
    batch = packed(scored, group.dp_size, 10_000)
    reports = [asyncio.run(group.step(batch)).metrics for _ in range(count)]
    return [(metrics["learner/loss"], metrics["learner/grad_norm"]) for metrics in reports]


def words(rank_count: int, stage: int) -> tuple[str, str]:
    return f"learner.num_workers={rank_count}", f"learner.zero_stage={stage}"


def start_offloaded(ranks: Ranks, stage: int) -> LearnerGroup:
    """One rank whose optimizer is offloaded; the checks of settings would refuse it on CPU."""
    config = ranks.config(*words(1, stage))
    config.learner.offload = Offload.optimizer
    return ranks.start_with(config)


EIGHT_BIT = "learner.optimizer=adamw_8bit"
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="make bitsandbytes")


@pytest.mark.parametrize(
    ("rank_count", "stage", "more"),
    [
        (1, 0, ()),
        (2, 1, ()),
        (2, 2, ()),
        (2, 3, ()),
        (1, 0, ("model.lora_rank=8",)),
        (2, 3, ("model.lora_rank=8",)),
        *(
            pytest.param(rank_count, stage, (EIGHT_BIT, *more), marks=needs_bitsandbytes)
            for rank_count, stage, *more in (
                (1, 0),
                (2, 1),
                (2, 1, "model.precision=bfloat16"),
                (2, 2),
                (2, 3),
                (2, 2, "model.lora_rank=8"),
            )
        ),
    ],
)
def test_steps_go_on_bit_for_bit(
    rank_count: int, stage: int, more: tuple[str, ...], ranks: Ranks, scored: list[ScoredExample], tmp_path: Path
) -> None:
    settings = (*words(rank_count, stage), "learner.weight_decay=0.1", *more)
    group = ranks.start(*settings)
    steps(group, scored, 2)
    asyncio.run(group.save(tmp_path / "two"))
    expected = steps(group, scored, 2)
    asyncio.run(group.save(tmp_path / "four"))
    again = ranks.start(*settings)
    asyncio.run(again.load(tmp_path / "two"))
    assert steps(again, scored, 2) == expected
    asyncio.run(again.save(tmp_path / "four-again"))
    for path in (tmp_path / "four").glob("*.safetensors"):
        one, other = load_file(path), load_file(tmp_path / "four-again" / path.name)
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one)
        assert sum(name.endswith("/exp_avg_sq") for name in one) == len(one) / (5 if EIGHT_BIT in more else 3)


@needs_bitsandbytes
def test_moments_in_8_bits_take_nearly_the_same_steps_and_fit_other_ranks_and_optimizers(
    ranks: Ranks, scored: list[ScoredExample], tmp_path: Path
) -> None:
    exact = ranks.start(*words(2, 1))
    steps(exact, scored, 2)
    asyncio.run(exact.save(tmp_path / "exact"))
    expected = np.array(steps(exact, scored, 2))
    rounded = ranks.start(*words(2, 1), EIGHT_BIT)
    steps(rounded, scored, 2)
    asyncio.run(rounded.save(tmp_path / "rounded"))
    own = np.array(steps(rounded, scored, 2))
    np.testing.assert_allclose(own, expected, rtol=0.1)
    assert (own != expected).all(), "moments are rounded"
    for folder, rank_count, stage, more in (
        ("exact", 2, 1, (EIGHT_BIT,)),
        ("rounded", 2, 1, ()),
        ("rounded", 1, 0, (EIGHT_BIT,)),
        ("rounded", 2, 3, (EIGHT_BIT,)),
    ):
        group = ranks.start(*words(rank_count, stage), *more)
        asyncio.run(group.load(tmp_path / folder))
        again = tmp_path / f"{folder} again"
        asyncio.run(group.save(again))
        for path in (tmp_path / folder).glob("*.safetensors"):
            before, after = load_file(path), load_file(again / path.name)
            moments = [name for name in before if name.endswith(("/exp_avg", "/exp_avg_sq"))]
            assert len(moments) > 10
            for name in moments:
                assert before[name].norm() > 0
                assert (before[name] - after[name]).norm() <= 0.1 * before[name].norm(), name
            assert any(name.endswith("_scale") for name in after) == (EIGHT_BIT in more)
        shutil.rmtree(again)
        np.testing.assert_allclose(np.array(steps(group, scored, 2)), expected, rtol=0.1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_makes_the_same_steps(
    stage: int, ranks: Ranks, scored: list[ScoredExample], tmp_path: Path
) -> None:
    """DeepSpeed's offload on CPU, where it moves nothing and settings refuse it: the steps are those without, and a
    checkpoint fits either."""
    plain = ranks.start(*words(1, stage))
    expected = steps(plain, scored, 2)
    asyncio.run(plain.save(tmp_path / "plain"))
    expected += steps(plain, scored, 1)
    moved = start_offloaded(ranks, stage)
    np.testing.assert_allclose(steps(moved, scored, 2), expected[:2], rtol=1e-5)
    asyncio.run(moved.save(tmp_path / "moved"))
    again = start_offloaded(ranks, stage)
    asyncio.run(again.load(tmp_path / "plain"))
    np.testing.assert_allclose(steps(again, scored, 1), expected[2:], rtol=1e-5)
    back = ranks.start(*words(1, stage))
    asyncio.run(back.load(tmp_path / "moved"))
    np.testing.assert_allclose(steps(back, scored, 1), expected[2:], rtol=1e-5)


def test_a_checkpoint_fits_other_ranks_and_stages(ranks: Ranks, scored: list[ScoredExample], tmp_path: Path) -> None:
    first = ranks.start(*words(2, 3))
    steps(first, scored, 2)
    asyncio.run(first.save(tmp_path / "two"))
    expected = np.array(steps(first, scored, 2))
    for rank_count, stage in ((1, 0), (2, 1), (1, 3)):
        group = ranks.start(*words(rank_count, stage))
        asyncio.run(group.load(tmp_path / "two"))
        np.testing.assert_allclose(np.array(steps(group, scored, 2)), expected, rtol=1e-4)


def test_a_checkpoint_before_the_first_step_and_one_of_another_model(
    ranks: Ranks, scored: list[ScoredExample], tmp_path: Path
) -> None:
    group = ranks.start(*words(2, 2))
    asyncio.run(group.save(tmp_path / "none"))
    expected = steps(group, scored, 1)
    again = ranks.start(*words(2, 2))
    asyncio.run(again.load(tmp_path / "none"))
    assert steps(again, scored, 1) == expected
    index = tmp_path / "none" / "index.json"
    index.write_text(index.read_text().replace('"model.norm.weight"', '"model.norm.scale"'))
    with pytest.raises(
        CheckpointError, match=r"is of another model than model.path: 2 tensors are missing .*, first model.norm"
    ):
        asyncio.run(again.load(tmp_path / "none"))


def test_a_checkpoint_that_holds_nan_is_refused_as_such(
    ranks: Ranks, scored: list[ScoredExample], tmp_path: Path
) -> None:
    group = ranks.start(*words(2, 2))
    asyncio.run(group.save(tmp_path / "one"))
    path = tmp_path / "one" / "weights-00000.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight/value"][3] = float("nan")
    save_file(tensors, path)
    again = ranks.start(*words(2, 2))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight/value has 1 of \d+ values that are not finite"):
        asyncio.run(again.load(tmp_path / "one"))
