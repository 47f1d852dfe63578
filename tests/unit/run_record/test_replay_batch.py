"""Replay batches: read back as written, or refused with the name of the tensor that differs."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from demopsd_dist.config import load, to_yaml
from demopsd_dist.data.records import BatchSize, ScoredExample, StepReport, TermWeights
from demopsd_dist.objective import DemoPSD, OutputHead, TokenViews, fused_loss, reduced
from demopsd_dist.run_record import digests, replay_batch
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import CheckpointError, ConfigError, DifferenceError
from launch import replay
from tests.unit.run_record.sample_rows import packed, scored
from workers.learner.loss_inputs import LossInputs
from workers.learner.observers.step_digests import DISTRIBUTIONS, DOT, OTHER, OWN, ResponseDigests, gradient_products

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
RECORD = replay_batch.ReplayRecord(
    step=1,
    config="",
    checkpoint=None,
    size=asdict(packed([scored("a", 5, 7)], 1, 100).size),
    learning_rate_factor=0.5,
    metrics={"learner/loss": 0.1},
    digests={},
    surroundings=replay_batch.code_versions(),
)


def batch(seed: int = 0) -> list[ScoredExample]:
    rng = np.random.default_rng(seed)

    def one(name: str, length: int) -> ScoredExample:
        item = scored(name, 5, length)
        logp_T = rng.normal(size=length).astype(np.float32)
        values = rng.normal(size=(length, 4)).astype(np.float32)
        example = replace(item.example, rollout=replace(item.example.rollout, logp_T=logp_T), advantage=rng.normal())
        return replace(item, example=example, reference_logp_TA=values, teacher_logp_TA=values)

    return [one(name, length) for name, length in (("physics/1", 7), ("biology/2", 300), ("physics/3", 40))]


def test_weights_of_a_mixed_loss_come_back_and_are_compared(tmp_path: Path) -> None:
    terms = [TermWeights(0.25, 0.75), TermWeights(1.0, 0.0), None]
    items = [
        replace(item, example=replace(item.example, terms=each)) for item, each in zip(batch(), terms, strict=True)
    ]
    write_batch(tmp_path, items)
    read = replay_batch.read(tmp_path, 1)
    assert [example.terms for example in read.examples] == terms
    other = digests.input_digests([replace(items[0].example, terms=TermWeights(0.5, 0.75))])
    (first,) = digests.differences(other, digests.input_digests([items[0].example]))
    assert str(first) == "policy_weight of response physics/1#0 alone, of 1"


def write_batch(folder: Path, items: list[ScoredExample], step: int = 1) -> Path:
    report = StepReport({"learner/loss": 0.1, "learner/grad_norm": 2.0}, stepped=True)
    record = replace(RECORD, step=step, digests=digests.step_digests(items, report))
    return replay_batch.write(
        folder, record, [item.example for item in items], [["physics/3#0"], ["biology/2#0", "physics/1#0"]]
    )


def test_a_batch_is_read_back_as_written(tmp_path: Path) -> None:
    items = batch()
    write_batch(tmp_path, items)
    read = replay_batch.read(tmp_path, 1)
    assert read.score_calls == [[2], [1, 0]]
    assert read.record.learning_rate_factor == 0.5
    assert digests.input_digests(read.examples) == digests.input_digests(item.example for item in items)
    engine = [
        replace(item.example, rollout=replace(item.example.rollout, support_TK=item.support_TK)) for item in items
    ]
    again = replay_batch.write(
        tmp_path, replace(RECORD, digests=digests.input_digests(engine)), engine, one_call(items)
    )
    support = replay_batch.read(tmp_path, 1).examples[1].rollout.support_TK
    assert support is not None
    np.testing.assert_array_equal(support, items[1].support_TK)
    assert again == tmp_path / "step-000001"


def one_call(items: list[ScoredExample]) -> list[list[str]]:
    return [[item.id for item in items]]


def test_no_bit_of_a_batch_can_flip_unnoticed(tmp_path: Path) -> None:
    path = write_batch(tmp_path, batch()) / replay_batch.BATCH
    intact = path.read_bytes()
    rng = random.Random(0)
    messages = []
    for bit in rng.sample(range(8 * len(intact)), 150):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DifferenceError) as raised:
            replay_batch.read(tmp_path, 1)
        messages.append(str(raised.value))
    named = [message for message in messages if message.startswith("first that differs: ")]
    assert len(named) > 100
    assert {message.split()[3].rstrip(".") for message in named} <= set(replay_batch.SCHEMA.names)


def test_a_value_with_one_bit_flipped_is_named_with_its_response(tmp_path: Path) -> None:
    path = write_batch(tmp_path, batch()) / replay_batch.BATCH
    table = pq.read_table(path, schema=replay_batch.SCHEMA)
    logp = [np.asarray(row, np.float32) for row in table.column("rollout_logp").to_pylist()]
    logp[1].view(np.int32)[17] ^= 1
    column = replay_batch.SCHEMA.get_field_index("rollout_logp")
    pq.write_table(
        table.set_column(column, replay_batch.SCHEMA.field(column), pa.array(logp, pa.list_(pa.float32()))), path
    )
    with pytest.raises(DifferenceError, match="first that differs: rollout_logp of response biology/2#0 alone, of 3"):
        replay_batch.read(tmp_path, 1)


def test_a_record_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = write_batch(tmp_path, batch()) / replay_batch.RECORD
    document = json.loads(path.read_text())
    document["content"]["metrics"]["learner/loss"] = 0.2
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="differs from what was written"):
        replay_batch.read(tmp_path, 1)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        replay_batch.read(tmp_path, 1)


def test_the_first_difference_is_the_nearest_to_the_cause() -> None:
    recorded = {"loss": {"all": "1"}, "alpha": {"a": "1", "b": "2", "c": "3"}, "gradient": {"0": "1"}}
    computed = {"alpha": {"a": "1", "b": "9", "c": "9"}, "loss": {"all": "2"}, "gradient": {"0": "1"}}
    first, second = digests.differences(recorded, computed)
    assert str(first) == "alpha of response b and 1 more of 3"
    assert str(second) == "loss"
    assert [d.tensor for d in digests.differences(recorded, {})] == ["alpha", "loss", "gradient"]


def test_response_digests_do_not_depend_on_the_slices() -> None:
    """Digests of a response's values; a response of another micro-batch changes nothing."""
    items = batch()
    generator = torch.Generator().manual_seed(0)
    hidden = {item.id: torch.randn(len(item.support_TK), 8, generator=generator) for item in items}
    weight_VH = torch.randn(50, 8, generator=generator)

    def seen(some: list[ScoredExample], slice_tokens: int) -> digests.Digests:
        response_digests = ResponseDigests()
        inputs = LossInputs.from_examples(
            some,
            aggregation="token_mean",
            size=BatchSize(1, 1),
            max_tokens=300,
            version=0,
            device=torch.device("cpu"),
        )
        hidden_NH = torch.cat([hidden[item.id] for item in some]).requires_grad_()
        ids_NK = torch.arange(3).expand(len(hidden_NH), 3)
        values_NA = torch.cat([torch.from_numpy(item.teacher_logp_TA).log_softmax(-1) for item in some])

        def loss_of(part):
            views = TokenViews(part.student_logp_NA, values_NA[part.tokens], values_NA[part.tokens].flip(-1))
            loss = reduced(DemoPSD(), views)
            response_digests.add_slice(inputs, part, views, loss)
            return loss.loss

        fused_loss(hidden_NH, OutputHead(weight_VH), ids_NK, loss_of, slice_tokens=slice_tokens)
        return response_digests.digests()

    whole = seen(items, 1000)
    assert set(whole) == {"student_logp", "token_loss", "entropy", *DISTRIBUTIONS.values()}
    assert set(whole) < set(digests.ORDER)
    assert all(list(rows) == ["physics/1#0", "biology/2#0", "physics/3#0"] for rows in whole.values())
    for tensor in ("disagreement", "alpha"):  # the others depend on how the head's product is cut
        assert seen(items, 128)[tensor] == whole[tensor]
        assert seen(items[1:], 1000)[tensor]["physics/3#0"] == whole[tensor]["physics/3#0"]


def test_products_of_two_gradients(tmp_path: Path) -> None:
    one, two = ([torch.randn(n) for n in (30, 1, 7)] for _ in range(2))
    save_file({f"{i:06d}": part for i, part in enumerate(two)}, tmp_path / "gradient.safetensors")
    sums = gradient_products(one, tmp_path / "gradient.safetensors")
    flat_one, flat_two = torch.cat(one), torch.cat(two)
    cosine = sums[DOT] / (sums[OWN] * sums[OTHER]) ** 0.5
    assert cosine == pytest.approx(float(torch.cosine_similarity(flat_one, flat_two, 0)), abs=1e-6)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(load(DEMO, [f"output_dir={tmp_path}"]))
    made.replay.mkdir()
    return made


def test_a_step_that_cannot_be_replayed_is_refused_with_the_reason(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        replay.read_step(tmp_path, 1)
    with pytest.raises(CheckpointError, match="the run has recorded no batch"):
        replay.read_step(folder.path, 1)
    for step in (1, 21):
        write_batch(folder.replay, batch(), step)
    with pytest.raises(CheckpointError, match=r"batch was not recorded; .* Steps that can: 1\."):
        replay.read_step(folder.path, 7)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 20, .* Steps that can: 1\."):
        replay.read_step(folder.path, 21)
    assert replay.read_step(folder.path, 1)[1].record.step == 1


def test_only_settings_that_need_the_same_tokens_may_be_set(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    items = batch()
    record = replace(
        RECORD, config=to_yaml(load(folder.config)), digests=digests.input_digests(i.example for i in items)
    )
    replay_batch.write(folder.replay, record, [item.example for item in items], one_call(items))
    for words, message in (
        ("rollout.temperature=0.5", "--set rollout.temperature: tokens and weights stay as recorded"),
        ("demopsd.alpha_maks=0.5", "Did you mean demopsd.alpha_max?"),
        ("sdpo.top_k=3", "has no effect with method=demopsd"),
    ):
        assert replay.main([str(folder.path), "--step", "1", "--set", words]) == 2
        assert message in capsys.readouterr().err
