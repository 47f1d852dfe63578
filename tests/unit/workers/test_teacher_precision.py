"""Teacher in bfloat16: bounds of its error in disagreement, alpha, loss and gradient; its memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.precision.sampled_examples import sampled_examples
from benchmarks.precision.teacher_rounding import differences, score, step_of, student_of, supports_of
from demopsd_dist.config import Config, Precision, WeightSource, load
from demopsd_dist.data.records import TrainingExample
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from launch._task import build_task
from workers.forward import ResponseModel
from workers.teacher import fsdp
from workers.teacher.worker import TeacherWorker, move

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
DATA = ["data.minisci_train_size=32", "data.minisci_test_size=8", "data.ood=null", "rollout.max_response_tokens=20"]
ONE_THREAD = ["teacher.threads=1"]


def config_of(*words: str) -> Config:
    return load(DEMO, [*DATA, *ONE_THREAD, *words])


@pytest.fixture(scope="module")
def student() -> ResponseModel:
    torch.set_num_threads(1)
    return student_of(MODEL_DIR)


@pytest.fixture(scope="module")
def examples(student: ResponseModel) -> list[TrainingExample]:
    config = config_of()
    task, _ = build_task(config, MODEL_DIR, load_data(config.data).questions)
    return sampled_examples(student, task, task.train[:5], config, samples=1)


def test_the_error_of_a_teacher_in_bfloat16_is_small(student: ResponseModel, examples: list[TrainingExample]) -> None:
    supports = supports_of(student, examples, config_of())
    exact, rounded = (
        step_of(student, score(config_of(*words), MODEL_DIR, examples, supports)[0], config_of())
        for words in ([], ["teacher.precision=bfloat16"])
    )
    errors = differences(exact, rounded)
    assert 0 < errors["disagreement_max"] < 0.05, errors
    assert errors["disagreement_mean_error"] < 0.02 * errors["disagreement_mean"], errors
    assert errors["alpha_max"] < 0.03, errors
    assert errors["alpha_mean_error"] < 0.02 * errors["alpha_mean"], errors
    assert errors["loss_error"] < 0.01 * errors["loss"], errors
    assert errors["gradient_cosine"] > 0.999, errors
    assert 0.98 < errors["gradient_norm_ratio"] < 1.02, errors


@pytest.mark.parametrize(
    ("words", "bytes_a_parameter"),
    [
        ([], 4),
        (["teacher.precision=bfloat16"], 6),  # a working copy beside the average
        (["teacher.precision=bfloat16", "demopsd.reference=frozen"], 8),  # and a frozen copy, which needs no average
        (["demopsd.reference=frozen"], 8),
    ],
)
def test_a_teacher_holds_the_stated_bytes(words: list[str], bytes_a_parameter: int) -> None:
    worker = TeacherWorker(0, config_of(*words), MODEL_DIR)
    worker.start()
    models = [*worker._models.values(), *worker._averages.values()]
    held = sum(tensor.nbytes for model in models for tensor in fsdp.tensors_of(model).values())
    elements = sum(tensor.numel() for tensor in fsdp.tensors_of(models[0]).values())
    assert held == bytes_a_parameter * elements


def test_an_average_in_bfloat16_would_stand_still() -> None:
    """Reason for the average in float32: a step of 5 % of a small change is below the rounding of bfloat16."""
    exact, rounded = torch.ones(1), torch.ones(1, dtype=torch.bfloat16)
    for _ in range(50):
        for tensor in (exact, rounded):
            move(tensor, torch.full((1,), 1.01), 0.05)
    assert exact.item() == pytest.approx(1.01 - 0.01 * 0.95**50)
    assert rounded.item() == 1.0
    move(rounded, torch.full((1,), 3.0), 1.0)
    assert rounded.item() == 3.0, "at rate 1 it is a copy"


def test_a_checkpoint_holds_the_average_and_refreshes_the_working_copy(tmp_path: Path) -> None:
    one = TeacherWorker(0, config_of("teacher.precision=bfloat16"), MODEL_DIR)
    one.start()
    with torch.no_grad():
        for parameter in one._averages[WeightSource.ema].parameters():
            parameter.add_(1e-5)
    one.save(tmp_path)
    other, exact = (
        TeacherWorker(0, config_of(f"teacher.precision={name}"), MODEL_DIR) for name in ("bfloat16", "float32")
    )
    for worker in (other, exact):
        worker.start()
        worker.load(tmp_path)
    for name, wanted in fsdp.tensors_of(one._averages[WeightSource.ema]).items():
        np.testing.assert_array_equal(fsdp.tensors_of(other._averages[WeightSource.ema])[name], wanted)
        np.testing.assert_array_equal(fsdp.tensors_of(exact._models[WeightSource.ema])[name], wanted)
        working = fsdp.tensors_of(other._models[WeightSource.ema])[name]
        assert working.dtype is torch.bfloat16
        assert torch.equal(working, wanted.to(torch.bfloat16))


def test_without_an_ema_there_is_no_average() -> None:
    worker = TeacherWorker(0, config_of("method=sdpo", "sdpo.teacher=live", "teacher.precision=bfloat16"), MODEL_DIR)
    worker.start()
    assert worker._averages == {}
    assert {tensor.dtype for tensor in fsdp.tensors_of(worker._models[WeightSource.live]).values()} == {torch.bfloat16}
    assert Precision.auto not in {worker._config.model.precision}
