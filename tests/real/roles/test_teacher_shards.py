"""Teachers that share a copy of the weights: scores, weights and files are bit for bit those of a whole copy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from demopsd_dist.config import Precision, WeightSource, teacher_precision
from demopsd_dist.data.records import Tokens, TrainingExample
from demopsd_dist.methods import Forwards, SupportKind
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import CheckpointError, LostStateError, WeightSyncError
from tests.real.conftest import demo, moved_model, posted
from tests.unit.run_record.sample_rows import prompt
from tests.unit.run_record.sample_rows import rollout as a_rollout
from workers.actor_group import ActorGroup
from workers.actors import start_ranks
from workers.cluster.placement import Bundle
from workers.cluster.resource_claim import ResourceClaim
from workers.forward import load_causal_lm
from workers.teacher import fsdp
from workers.teacher.worker import TeacherWorker, environment

RANKS = 3  # MiniSci's tensors have other numbers of rows than multiples of it
WORDS = ("method=sdpo", "sdpo.teacher=trust_region", "teacher.batch_tokens=64", "teacher.ema_rate=0.05")
EVERY = frozenset({WeightSource.ema, WeightSource.frozen, WeightSource.live})
TOP_K = 7


class Holder(TeacherWorker):
    """A teacher worker with all kinds of weights, which counts its elements and saves them in several files."""

    _file_bytes = 1 << 20

    def start(self, meeting_point: Any = None) -> None:
        super().start(meeting_point)
        precision = teacher_precision(self._config)
        self._models = {weights: self._load(precision) for weights in sorted(EVERY, key=lambda w: w.value)}
        self._averages = {} if precision is Precision.float32 else {WeightSource.ema: self._load(Precision.float32)}

    def elements(self) -> int:
        parameters = fsdp.tensors_of(self._models[WeightSource.ema]).values()
        return sum(fsdp.local_rows(parameter).numel() for parameter in parameters)


def whole_teacher(folder: Path = MODEL_DIR, *words: str) -> Holder:
    worker = Holder(0, demo(*WORDS, *words), folder)
    worker.start()
    return worker


def call_all(group: ActorGroup, call: Callable[[Any, int], Any]) -> list[Any]:
    return asyncio.run(group.each(call, within_s=60, what="a test"))


def publish_to(group: ActorGroup | None, alone: Holder, versions: int) -> None:
    """Publish `versions` times: MiniSci's own weights, then moved ones."""
    own = load_causal_lm(MODEL_DIR, Precision.float32)
    for version, model in enumerate([own, *[moved_model()] * (versions - 1)][:versions]):
        bucket_refs = posted(version, model.named_parameters())
        alone.receive(version, bucket_refs)
        if group is not None:
            call_all(group, partial(receive, version, bucket_refs))


def receive(version: int, bucket_refs: Any, worker: Any, _: int) -> Any:
    return worker(Holder.receive, version, bucket_refs)


def score(calls: list[Any], forwards: Forwards, worker: Any, rank: int) -> Any:
    return worker(Holder.score, *calls[rank], forwards)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniSci in bfloat16: teachers hold it in float32 all the same."""
    folder = tmp_path_factory.mktemp("bfloat16")
    load_causal_lm(MODEL_DIR, Precision.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharers(ray_here: None, folder: Path) -> Iterator[ActorGroup]:
    config = demo(*WORDS, f"teacher.num_workers={RANKS}", f"teacher.shards={RANKS}")
    placement = ResourceClaim([Bundle("teacher", rank, 0.1, 0) for rank in range(RANKS)])
    group = placement.spawn_group(
        "teacher", Holder, lambda rank: (rank, config, folder), environment(config), LostStateError
    )
    asyncio.run(start_ranks(group, 180, "a start"))
    yield group
    group.kill()
    placement.release()


def examples(count: int) -> list[TrainingExample]:
    rollouts = [a_rollout(prompt(f"q{i}"), length=5 + i) for i in range(count)]
    return [
        TrainingExample(rollout, 1.0, 0.0, np.arange(30, 50 + i, dtype=np.int32)) for i, rollout in enumerate(rollouts)
    ]


def supports(of: list[TrainingExample]) -> list[Tokens]:
    return [np.tile(np.arange(TOP_K, dtype=np.int32), (example.response_length_tokens, 1)) for example in of]


def compare_with_one(sharers: ActorGroup, alone: Holder, given: bool, versions: int) -> None:
    """Scores of workers with several forwards to run, one, or none, and those of one with a whole copy."""
    publish_to(sharers, alone, versions)
    assignment = [examples(7), examples(1), []]
    calls = [(part, supports(part) if given else None) for part in assignment]
    for forwards in (
        Forwards(SupportKind.student, WeightSource.ema, WeightSource.ema),
        Forwards(SupportKind.student, WeightSource.frozen, WeightSource.trust_region),
    ):
        answers = call_all(sharers, partial(score, calls, forwards))
        for call, answer in zip(calls, answers, strict=True):
            expected = alone.score(*call, forwards)
            assert len(answer) == len(expected) == len(call[0])
            for one, other in zip(answer, expected, strict=True):
                for found, wanted in zip(one, other, strict=True):
                    assert (found is None) == (wanted is None)
                    if found is not None:
                        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("given", "versions"), [(False, 0), (True, 2)], ids=["as loaded", "as published"])
def test_they_say_what_one_with_a_whole_copy_says(
    sharers: ActorGroup, folder: Path, given: bool, versions: int
) -> None:
    compare_with_one(sharers, whole_teacher(folder), given, versions)
    ran = call_all(sharers, lambda worker, _: worker(Holder.forward_counts))
    assert ran[2] == {}, "forwards for nothing are not counted"


def test_sharers_in_bfloat16_say_the_same_too(ray_here: None, tmp_path: Path) -> None:
    """From a folder in float32, which is rounded when it is loaded; the average stays in float32."""
    half = "teacher.precision=bfloat16"
    config = demo(*WORDS, half, f"teacher.num_workers={RANKS}", f"teacher.shards={RANKS}")
    placement = ResourceClaim([Bundle("teacher", rank, 0.1, 0) for rank in range(RANKS)])
    group = placement.spawn_group(
        "teacher", Holder, lambda rank: (rank, config, MODEL_DIR), environment(config), LostStateError
    )
    try:
        asyncio.run(start_ranks(group, 180, "a start"))
        alone = whole_teacher(MODEL_DIR, half)
        compare_with_one(group, alone, given=True, versions=2)
        call_all(group, lambda worker, _: worker(Holder.save, tmp_path))
        saved = {name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()}
        for name, tensor in fsdp.tensors_of(alone._averages[WeightSource.ema]).items():
            assert saved[name].equal(tensor)
    finally:
        group.kill()
        placement.release()


def test_each_holds_its_part_alone(sharers: ActorGroup) -> None:
    whole = whole_teacher().elements()
    parts = call_all(sharers, lambda worker, _: worker(Holder.elements))
    assert sum(parts) == whole
    assert max(parts) < 0.36 * whole


def test_what_they_save_fits_one_and_the_other_way_round(sharers: ActorGroup, tmp_path: Path) -> None:
    names = dict(moved_model().named_parameters())
    ours, theirs = tmp_path / "whole", tmp_path / "shared"
    for folder in (ours, theirs):
        folder.mkdir()
    one = whole_teacher()
    publish_to(None, one, versions=3)
    one.save(ours)
    call_all(sharers, lambda worker, _: worker(Holder.load, ours))
    call_all(sharers, lambda worker, _: worker(Holder.save, theirs))
    assert len(list(theirs.glob("*.safetensors"))) > RANKS
    other = whole_teacher()
    other.load(theirs)
    assert other.version == one.version == 2
    before, after = (fsdp.tensors_of(worker._models[WeightSource.ema]) for worker in (one, other))
    assert before.keys() == after.keys() == names.keys()
    for name, parameter in before.items():
        assert parameter.equal(after[name])
    assert not any(parameter.equal(names[name]) for name, parameter in before.items()), "it is an average"


def test_an_average_of_another_model_is_refused(tmp_path: Path) -> None:
    one = whole_teacher()
    one.save(tmp_path)
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].repeat(2, *[1] * (tensors[name].ndim - 1))}, path, {"version": "2"})
    with pytest.raises(CheckpointError, match=rf"is of another model than model.path: {name} is \[\d+"):
        one.load(tmp_path)
    path.unlink()
    with pytest.raises(WeightSyncError, match=f"teacher 0 was not sent .* first {name}"):
        one.load(tmp_path)
