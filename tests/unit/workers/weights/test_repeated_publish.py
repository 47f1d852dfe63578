"""A publish that breaks off and is repeated: the teacher averages each tensor once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from demopsd_dist.config import Config, Precision, WeightSource, load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import BrokenGroupError
from workers.forward import load_causal_lm
from workers.teacher import fsdp
from workers.teacher.worker import TeacherWorker
from workers.weights.buckets import Bucket, pack_bucket

RATE = 0.25
DEMO = Path(__file__).parents[4] / "configs" / "demo.yaml"


class FedTeacher(TeacherWorker):
    """A teacher that is given its buckets, and breaks off before the one of `breaks_at`."""

    def __init__(self, config: Config, buckets: list[Bucket]) -> None:
        super().__init__(0, config, MODEL_DIR)
        self._buckets = buckets
        self.breaks_at: int | None = None
        self.waited_s = self.verified_s = self.began_s = 0.0

    def arriving_buckets(self, version: int, bucket_refs: Any) -> Iterator[Bucket]:
        for bucket in self._buckets:
            if bucket.header.index == self.breaks_at:
                raise BrokenGroupError("a member has died.")
            yield bucket


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_average_takes_each_tensor_of_a_version_once(precision: str) -> None:
    old = load_causal_lm(MODEL_DIR, Precision.float32)
    named = [(name, parameter.detach() * 1.5) for name, parameter in old.named_parameters()]
    half = len(named) // 2
    buckets = [pack_bucket(1, index, part) for index, part in enumerate((named[:half], named[half:]))]
    words = ["method=sdpo", f"teacher.ema_rate={RATE}", f"teacher.precision={precision}", "model.precision=float32"]
    teacher = FedTeacher(load(DEMO, words), buckets)
    teacher.start()
    for teacher.breaks_at in (1, 1, None, None):
        if teacher.breaks_at is None:
            assert teacher.receive(1, []).version == 1
        else:
            with pytest.raises(BrokenGroupError):
                teacher.receive(1, [])
    assert teacher._exact_ema is not None
    averages = fsdp.tensors_of(teacher._exact_ema)
    working = fsdp.tensors_of(teacher._models[WeightSource.ema])
    for name, parameter in old.named_parameters():
        expected = parameter.detach() * (1 + 0.5 * RATE)
        torch.testing.assert_close(averages[name], expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(working[name], averages[name].to(working[name].dtype))
