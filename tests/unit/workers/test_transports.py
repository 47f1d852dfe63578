"""Transports of weights, and the checks of what arrived."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions

from demopsd_dist.config import LogpBounds, Transport
from demopsd_dist.util.errors import ConfigError, LostStateError, WeightSyncError
from workers.actor_group import gather_root_cause
from workers.weights.buckets import bucket_bytes, layout, pack_bucket, unpack_bucket, verify_bucket
from workers.weights.canary import canary_tokens, refuse_old_weights, refuse_other_weights
from workers.weights.receiver import refuse_other_names
from workers.weights.transports import (
    DeviceOutbox,
    MappedSegments,
    SharedMemoryOutbox,
    choose_transport,
    create_outbox,
    map_segment,
    pin,
)

BOUNDS = LogpBounds(1e-3, 1e-3)
AUTO, SHARED, STORE = Transport.auto, Transport.shared_memory, Transport.object_store
TENSORS = [
    [("a", torch.arange(5, dtype=torch.float32)), ("b", torch.ones(3, dtype=torch.bfloat16))],
    [("c", torch.arange(2000, dtype=torch.int64))],
]
SIZES = [bucket_bytes(layout((name, x.shape, x.dtype) for name, x in tensors)) for tensors in TENSORS]


def test_auto_takes_memory_where_all_share_a_node() -> None:
    here, apart = {"rollout 0": "n", "teacher 0": "n"}, {"rollout 0": "n", "rollout 1": "m"}
    assert choose_transport(AUTO, "n", here) is SHARED
    assert choose_transport(AUTO, "n", apart) is STORE
    assert choose_transport(STORE, "n", here) is STORE
    assert choose_transport(SHARED, "n", here) is SHARED
    message = "weights.transport=shared_memory: not on the node of learner 0: rollout 1. Set it to auto or"
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_transport(SHARED, "n", apart)
    assert choose_transport(Transport.ipc, "n", here) is Transport.ipc
    with pytest.raises(ConfigError, match=r"ipc: not on the node of learner 0: rollout 1"):
        choose_transport(Transport.ipc, "n", apart)


def test_shared_memory_carries_buckets_and_leaves_no_name() -> None:
    names = set(os.listdir("/dev/shm"))
    memory = SharedMemoryOutbox(SIZES)
    receiver = map_segment(memory.segment)
    for version in range(2):  # the same slices again
        for index, tensors in enumerate(TENSORS):
            changed = [(name, tensor + version) for name, tensor in tensors]
            bucket = pack_bucket(version, index, changed, memory.buffer(index))
            start = memory.send(bucket).location.start
            arrived = replace(bucket, data=receiver[start : start + SIZES[index]])
            verify_bucket(arrived, "rollout 0")
            for (_, received), (_, tensor) in zip(unpack_bucket(arrived), changed, strict=True):
                assert torch.equal(received, tensor)
    assert not receiver.flags.writeable
    assert not [name for name in set(os.listdir("/dev/shm")) - names if "demopsd" in name]


def test_a_gpu_that_roles_share_carries_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the mapping between processes, for which a GPU is needed: the same tensor stands for it here."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(reductions, "reduce_tensor", lambda tensor: (lambda memory: memory, (tensor,)))
    outbox = create_outbox(Transport.ipc, SIZES, torch.device("cpu"))
    assert isinstance(outbox, DeviceOutbox)
    segments = MappedSegments()
    with pytest.raises(ConfigError, match=r"learner 0 is on GPU GPU-1, and .* on none\. Let all roles share one GPU"):
        segments.add(outbox.segment)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    segments.add(outbox.segment)
    for version in range(2):
        bucket_refs = []
        for index, tensors in enumerate(TENSORS):
            changed = [(name, tensor + version) for name, tensor in tensors]
            bucket_refs.append(outbox.send(pack_bucket(version, index, changed, outbox.buffer(index))))
        for bucket_ref, tensors in zip(bucket_refs, TENSORS, strict=True):
            arrived = segments.bucket(bucket_ref)
            verify_bucket(arrived, "rollout 0")
            for (_, received), (_, tensor) in zip(unpack_bucket(arrived), tensors, strict=True):
                assert torch.equal(received, tensor + version)
    assert isinstance(arrived.data, torch.Tensor)
    arrived.data[8] += 1
    with pytest.raises(WeightSyncError, match="bucket 1 of weights version 1 damaged"):
        verify_bucket(arrived, "rollout 0")


@pytest.mark.parametrize("error", [0, 801])
def test_memory_is_pinned_as_long_as_it_is_used(
    error: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for CUDA, which is not there: what it is asked, and what happens when it refuses."""
    asked: list[tuple[object, ...]] = []

    def register(address: int, size: int, flags: int) -> int:
        asked.append((address, size, flags))
        return error

    cuda = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    raised = 0

    def kernel(*_: object, **__: object) -> None:
        nonlocal raised
        raised += 1
        raise RuntimeError("CUDA error: operation not supported")

    monkeypatch.setattr(torch, "ones", kernel)
    pages = np.zeros(3 << 20, np.uint8)
    pages.flags.writeable = False
    address = pages.ctypes.data
    pin(pages)
    assert asked == [(address, 3 << 20, 8)], "read-only memory is registered as such"
    part = pages[:5]
    del pages
    assert len(asked) == 1, "a part is still used"
    del part
    assert asked[1:] == ([] if error else [address])
    said = "3 MiB for published weights could not be pinned: CUDA error 801\n" if error else ""
    assert capsys.readouterr().out == said
    assert raised == bool(error), "otherwise the next kernel would raise the error"


def test_memory_out_of_reach_is_explained() -> None:
    memory = SharedMemoryOutbox(SIZES)
    with pytest.raises(LostStateError, match=r"cannot be mapped: .* set weights.transport=object_store\.$"):
        map_segment(replace(memory.segment, descriptor=9999))


def test_names_are_compared_both_ways() -> None:
    refuse_other_names("rollout 0", {"a"}, {"a"}, "weights version 3")
    with pytest.raises(WeightSyncError, match="rollout 0 was not sent 2 of the tensors of weights version 3, first a"):
        refuse_other_names("rollout 0", {"c", "a", "b"}, {"b"}, "weights version 3")
    with pytest.raises(WeightSyncError, match="rollout 0 does not know 1 of the tensors of weights version 3, first z"):
        refuse_other_names("rollout 0", {"b"}, {"b", "z"}, "weights version 3")


def test_the_canary_is_fixed_and_fits() -> None:
    canary = canary_tokens(272, 100)
    assert len(canary) == 32
    assert canary.tolist() == canary_tokens(272, 100).tolist()
    assert 0 <= canary.min() <= canary.max() < 272
    assert len(canary_tokens(272, 8)) == 8


def test_an_engine_with_other_weights_is_named_with_the_numbers() -> None:
    learner_T = np.array([-1.0, -2.0, -3.0], np.float32)
    refuse_other_weights("rollout 1", 4, learner_T, learner_T + 0.0005, BOUNDS)
    for stray in (0.25, -0.25, np.nan):
        engine_T = learner_T + np.array([0.0, stray, 0.0], np.float32)
        message = r"rollout 1 does not have the weights of version 4: .* token 2 of the canary prompt .* learner's -2;"
        with pytest.raises(WeightSyncError, match=message):
            refuse_other_weights("rollout 1", 4, learner_T, engine_T, BOUNDS)


def test_an_engine_that_is_a_little_off_everywhere_is_found_by_the_median() -> None:
    """Rounding of bfloat16 leaves room for a large difference of one token, and not for small ones of all."""
    learner_T, bounds = np.full(5, -3.0, np.float32), LogpBounds(3.0, 0.2)
    refuse_other_weights(
        "rollout 1", 4, learner_T, learner_T + np.array([0.1, 2.9, 0.0, -0.1, 0.3], np.float32), bounds
    )
    with pytest.raises(WeightSyncError, match=r"by 0\.25 nats in the median, weights.typical_logp_diff=0.2"):
        refuse_other_weights("rollout 1", 4, learner_T, learner_T + np.float32(0.25), bounds)


def test_canary_tokens_of_probability_zero_are_equal_only_to_each_other() -> None:
    learner_T = np.array([-1.0, -np.inf], np.float32)
    refuse_other_weights("rollout 1", 4, learner_T, learner_T.copy(), BOUNDS)
    refuse_old_weights("rollout 1", 4, (learner_T, learner_T), (learner_T, learner_T))
    with pytest.raises(WeightSyncError, match="they differ by inf"):
        refuse_other_weights("rollout 1", 4, learner_T, np.array([-1.0, -9.0], np.float32), BOUNDS)


def test_an_engine_that_stands_still_while_the_learner_moves() -> None:
    old_T = np.array([-1.0, -2.0], np.float32)
    new_T = old_T + np.array([0.0, 1e-4], np.float32)
    message = "rollout 1 kept its weights: .* version 4 changed the learner's by up to 0.0001 nats"
    with pytest.raises(WeightSyncError, match=message):
        refuse_old_weights("rollout 1", 4, (old_T, new_T), (old_T, old_T))
    refuse_old_weights("rollout 1", 4, (old_T, new_T), (old_T, new_T))
    refuse_old_weights("rollout 1", 4, (old_T, old_T), (old_T, old_T))


def test_the_first_of_the_arguments_is_the_root_cause() -> None:
    async def fails(after_s: float, what: str) -> Any:
        await asyncio.sleep(after_s)
        raise RuntimeError(what)

    async def answers() -> str:
        return "well"

    async def waits() -> None:
        with pytest.raises(RuntimeError, match="the learner"):
            await gather_root_cause(fails(0.05, "the learner"), fails(0.0, "a receiver"), answers())
        assert await gather_root_cause(answers(), answers()) == ["well", "well"]

    asyncio.run(waits())
