"""Buckets that show damage, and the placement of roles on machines."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from demopsd_dist.config import load
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.util.errors import ConfigError, WeightSyncError
from workers.cluster.placement import bundles, check_fits, check_nodes, has_label, summary_of_roles, table
from workers.cluster.ranks import interface_of
from workers.learner.extensions import ensure_extensions, is_built, is_current, own_extensions, with_own_tools
from workers.weights.buckets import pack_bucket, unpack_bucket, verify_bucket
from workers.weights.tensor_groups import group_by_bytes

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"

TENSORS = [
    ("a", torch.arange(6, dtype=torch.float32).reshape(2, 3)),
    ("half", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
    ("scalar", torch.tensor(7.0)),
    ("turned", torch.arange(6, dtype=torch.float32).reshape(2, 3).T),
]


def test_tensors_come_back_bit_for_bit() -> None:
    bucket = pack_bucket(3, 0, TENSORS)
    verify_bucket(bucket, "rollout 0")
    unpacked = dict(unpack_bucket(bucket))
    assert list(unpacked) == [name for name, _ in TENSORS]
    for name, tensor in TENSORS:
        assert unpacked[name].dtype == tensor.dtype
        assert torch.equal(unpacked[name], tensor)


@pytest.mark.parametrize("byte", [0, 11, 64, 67, 131, 215])
def test_one_flipped_bit_is_noticed_and_named(byte: int) -> None:
    bucket = pack_bucket(3, 5, TENSORS)
    data = np.array(bucket.data)
    data[byte] ^= 1
    message = "teacher 0 got bucket 5 of weights version 3 damaged: digest"
    with pytest.raises(WeightSyncError, match=message) as caught:
        verify_bucket(dataclasses.replace(bucket, data=data), "teacher 0")
    assert "It holds a to turned." in str(caught.value)


def test_a_tensor_under_another_name_is_noticed() -> None:
    bucket = pack_bucket(3, 0, TENSORS)
    specs = (dataclasses.replace(bucket.header.specs[0], name="b"), *bucket.header.specs[1:])
    header = dataclasses.replace(bucket.header, specs=specs)
    with pytest.raises(WeightSyncError, match="damaged"):
        verify_bucket(dataclasses.replace(bucket, header=header), "teacher 0")


def test_buckets_keep_order_and_size() -> None:
    named = [(str(i), nn.Parameter(torch.zeros(size))) for i, size in enumerate((10, 10, 100, 1, 1, 1, 30))]
    cut = list(group_by_bytes(named, max_bytes=4 * 20))
    assert [[name for name, _ in bucket] for bucket in cut] == [["0", "1"], ["2"], ["3", "4", "5"], ["6"]]


def test_a_sharded_parameter_counts_whole() -> None:
    parameter = nn.Parameter(torch.zeros(0))
    parameter.ds_numel = 1000  # type: ignore[attr-defined]
    cut = list(group_by_bytes([("a", parameter), ("b", nn.Parameter(torch.zeros(1)))], max_bytes=400))
    assert [len(bucket) for bucket in cut] == [1, 1]


def test_a_method_without_a_teacher_claims_nothing_for_one() -> None:
    assert [bundle.role for bundle in bundles(load(DEMO, ["method=grpo"]))] == ["rollout"] * 2 + ["learner"] * 2
    assert summary_of_roles(load(DEMO, ["method=grpo"])) == "2 rollout, 2 learner (ZeRO-2)"
    held = {
        "method=sdpo": "ema",
        "method=opsd": "frozen",
        "demopsd.reference=frozen": "ema+frozen",
        "demopsd.teacher=trust_region": "ema+frozen+live",
        "grpo.kl_coefficient=0.04": "frozen",
    }
    for word, weights in held.items():
        words = ["method=grpo", word] if word.startswith("grpo") else [word]
        assert f"1 teacher ({weights})" in summary_of_roles(load(DEMO, words)), word


def test_the_demo_fits_two_cores_and_says_what_does_not() -> None:
    config = load(DEMO)
    assert sum(bundle.cpus for bundle in bundles(config)) == pytest.approx(2.0)
    check_fits(config, cpus=2, gpus=0)
    assert len(table(config).splitlines()) == 5
    message = (
        "rollout.num_workers=2 x cpus_per_worker=0.4 + teacher.num_workers=1 x cpus_per_worker=0.4 + "
        "learner.num_workers=2 x cpus_per_worker=0.4 need 2 CPUs; there are 1. Lower a role's "
        "num_workers or cpus_per_worker"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_fits(config, cpus=1, gpus=0)
    on_gpus = load(DEMO, ["rollout.gpus_per_worker=1", "learner.gpus_per_worker=1", "learner.num_workers=4"])
    with pytest.raises(ConfigError, match="need 6 GPUs; there are 4"):
        check_fits(on_gpus, cpus=8, gpus=4)
    both = (
        r"need 6 GPUs; there are 4\. .* need 2\.8 CPUs; there are 1\. Lower .* gpus_per_worker and cpus_per_worker \("
    )
    with pytest.raises(ConfigError, match=both):
        check_fits(on_gpus, cpus=1, gpus=4)


def test_the_processes_of_an_engine_are_claimed_together() -> None:
    config = load(DEMO, ["rollout.gpus_per_worker=1", "rollout.tensor_parallel=4", "rollout.num_workers=2"])
    assert [(b.cpus, b.gpus) for b in bundles(config) if b.role == "rollout"] == [(1.6, 4)] * 2
    assert summary_of_roles(config).startswith("2 rollout (TP-4), ")
    message = r"rollout.num_workers=2 x gpus_per_worker=1 x tensor_parallel=4 \+ .* need 8 GPUs; there are 6\."
    with pytest.raises(ConfigError, match=message):
        check_fits(config, cpus=8, gpus=6)
    with pytest.raises(ConfigError, match="each process of such an engine needs a GPU of its own"):
        load(DEMO, ["rollout.gpus_per_worker=0.5", "rollout.gpu_memory_fraction=0.4", "rollout.tensor_parallel=2"])
    with pytest.raises(ConfigError, match=r"the attention heads of .* shared out alike. Set it to one of 1, 2, 4\."):
        model_folder(load(DEMO, ["rollout.tensor_parallel=3"]))


@pytest.mark.parametrize(
    ("nodes", "fitting"),
    [
        (None, "abc"),
        ("role=learn", "a"),
        ("role=!learn", "bc"),
        ("role=in(learn,sample)", "ab"),
        ("role=!in(learn,sample)", "c"),
        ("ray.io/node-group=x", "c"),
    ],
)
def test_a_label_chooses_nodes(nodes: str | None, fitting: str) -> None:
    labels = {"a": {"role": "learn"}, "b": {"role": "sample"}, "c": {"ray.io/node-group": "x"}}
    assert "".join(name for name in labels if has_label(labels[name], nodes)) == fitting


def test_the_nodes_of_a_label_must_have_room() -> None:
    def node(cpus: float, role: str, alive: bool = True) -> dict[str, object]:
        return {"Alive": alive, "Resources": {"CPU": cpus}, "Labels": {"role": role}}

    config = load(DEMO, ["ray_address=auto", "learner.nodes=role=learn"])
    assert [bundle.label for bundle in bundles(config) if bundle.role != "rollout"] == [{}, *[{"role": "learn"}] * 2]
    check_nodes(config, [node(1.2, "sample"), node(0.8, "learn")])
    with pytest.raises(ConfigError, match=r"_workers=2 .* need 0.8 CPUs; on nodes with role=learn are 0.7\."):
        check_nodes(config, [node(3, "sample"), node(0.7, "learn")])
    with pytest.raises(ConfigError, match=r"learner.nodes=role=learn: no node of the cluster has that label\."):
        check_nodes(config, [node(3, "sample"), node(3, "learn", alive=False)])
    with pytest.raises(ConfigError, match=r"need 2 CPUs; there are 1\.9\."):
        check_nodes(config, [node(0.5, "sample"), node(1.4, "learn")])
    wide = load(DEMO, ["ray_address=auto", "rollout.tensor_parallel=4"])
    message = (
        r"cpus_per_worker=0\.4 x tensor_parallel=4: one worker needs 1\.6 CPUs on a node; no node has more than 1\.5"
    )
    with pytest.raises(ConfigError, match=message):
        check_nodes(wide, [node(1.5, "sample")] * 9)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_a_lock_left_by_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    built = tmp_path / "built" / "deepspeed_shm_comm"
    built.mkdir(parents=True)
    (built / "op.so").write_text("compiled")
    (built / "lock").touch()
    with own_extensions(tmp_path / "built"):
        mine = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "deepspeed_shm_comm"
        assert [path.name for path in mine.iterdir()] == ["op.so"]
    assert not mine.exists()
    assert (built / "lock").exists(), "it may belong to somebody who builds"


def fake_compiler(count: list[Path], works: bool = True, pause_s: float = 0.0) -> Callable[[Path], bool]:
    """A compiler that writes what DeepSpeed's build leaves, or the half of it and no library."""

    def compile_extension(folder: Path) -> bool:
        count.append(folder)
        op = folder / "deepspeed_shm_comm"
        op.mkdir()
        (op / "shm.o").write_text("object")
        time.sleep(pause_s)
        if works:
            (op / "deepspeed_shm_comm.so").write_text("library")
        return works

    return compile_extension


def test_a_build_that_was_cut_off_is_built_again_and_said(tmp_path: Path) -> None:
    built, count, said = tmp_path / "torch_extensions", list[Path](), list[str]()
    (built / "deepspeed_shm_comm").mkdir(parents=True)
    (built / "deepspeed_shm_comm" / "lock").touch()
    assert not is_built(built)
    assert ensure_extensions(built, said.append, fake_compiler(count))
    assert {path.name for path in (built / "deepspeed_shm_comm").iterdir()} == {"shm.o", "deepspeed_shm_comm.so"}
    assert "compiles DeepSpeed's CPU extension into" in said[0]
    assert ensure_extensions(built, said.append, fake_compiler(count))
    assert (len(count), len(said)) == (1, 1), "once"


def test_a_build_that_ninja_would_build_again_is_not_current(tmp_path: Path) -> None:
    """As after another version of torch: its headers are newer than the library."""
    op = tmp_path / "torch_extensions" / "deepspeed_shm_comm"
    op.mkdir(parents=True)
    source, built = tmp_path / "shm.cpp", op.parent
    source.write_text("source")
    rule = f"rule copy\n  command = cp $in $out\nbuild deepspeed_shm_comm.so: copy {source}\n"
    (op / "build.ninja").write_text(rule)
    assert not is_current(built)
    subprocess.run(["ninja", "-C", str(op)], env=with_own_tools(), stdout=subprocess.DEVNULL, check=True)
    assert is_current(built)
    os.utime(source, (time.time() + 9, time.time() + 9))
    assert not is_current(built)
    said: list[str] = []
    assert ensure_extensions(built, said.append, fake_compiler([]))
    assert len(said) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    built = tmp_path / "torch_extensions"
    assert not ensure_extensions(built, lambda _: None, fake_compiler([], works=False))
    assert [path.name for path in tmp_path.iterdir()] == ["torch_extensions.lock"]


def test_one_of_several_processes_builds_and_the_others_wait(tmp_path: Path) -> None:
    count: list[Path] = []
    compile_extension = fake_compiler(count, pause_s=0.3)
    with ThreadPoolExecutor(4) as pool:  # each opens the lock file anew, as processes do
        calls = [
            pool.submit(ensure_extensions, tmp_path / "torch_extensions", lambda _: None, compile_extension)
            for _ in range(4)
        ]
        assert [call.result() for call in calls] == [True] * 4
    assert len(count) == 1
