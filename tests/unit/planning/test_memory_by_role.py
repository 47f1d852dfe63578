"""Tests of counted memory: parameters against transformers' models, activations against those that autograd saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from demopsd_dist.config import ModelConfig
from demopsd_dist.objective import SLICE_TOKENS
from demopsd_dist.planning import forward_time
from demopsd_dist.planning.drawn_batch import DrawnBatch
from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import (
    checkpoint_gib,
    learner_footprint,
    memory_footprints,
    rollout_footprint,
    saved_activation_bytes,
    shortfalls,
    teacher_footprint,
    unfused_logits_gib,
)
from demopsd_dist.planning.model_shape import KNOWN, ModelShape, shape_from, shape_of
from demopsd_dist.planning.roofline import Power
from demopsd_dist.planning.workload import Split
from demopsd_dist.util.errors import ConfigError
from tests.unit.planning.example_workloads import SHAPE, example_workload, gpu, gpu_cluster
from workers.learner.lora import add_adapters


def test_the_planner_counts_the_slices_that_the_objective_makes() -> None:
    assert forward_time.SLICE_TOKENS == SLICE_TOKENS


def model_of(shape: ModelShape, kind: str = "Qwen3") -> Any:
    import transformers

    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        **(
            {"num_experts": shape.experts, "num_experts_per_tok": shape.experts_per_token}
            | {"moe_intermediate_size": shape.intermediate}
            if shape.experts
            else {}
        ),
    )
    return getattr(transformers, f"{kind}ForCausalLM")(settings).eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen3-0.6b", "Qwen3"), ("qwen3-8b", "Qwen3"), ("qwen3-30b-a3b", "Qwen3Moe"), ("llama-3.1-8b", "Llama")],
)
def test_parameters_are_those_of_the_model(name: str, kind: str) -> None:
    with torch.device("meta"):
        assert KNOWN[name].parameters == parameters(model_of(KNOWN[name], kind))


def test_a_folder_is_read_and_a_name_is_known(tmp_path) -> None:
    assert shape_of("minisci").parameters == 857_472
    assert shape_of("models/Qwen3-4B-Instruct-2507") is KNOWN["qwen3-4b"]
    settings = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 500}
    with pytest.raises(ConfigError, match=r"config.json has no intermediate_size"):
        shape_from(settings, "here")
    with pytest.raises(ConfigError, match=r"not a model whose shape is known: qwen3-0.6b"):
        shape_of(str(tmp_path / "own"))


def test_activations_are_what_autograd_keeps() -> None:
    """Saved bytes of all layers without weights, each storage once, within a tenth."""
    torch.manual_seed(0)
    model, tokens = model_of(SHAPE), 300
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_decoder()(torch.arange(tokens)[None] % 500, use_cache=False).last_hidden_state
    counted = saved_activation_bytes(
        example_workload(), DrawnBatch(rows=1, length=tokens, responses=1, predicted=0, masked=False)
    )
    assert sum(saved.values()) == pytest.approx(counted, rel=0.1)
    assert hidden.requires_grad


def test_checkpointing_keeps_a_layers_input_and_one_layer() -> None:
    batch = DrawnBatch(rows=1, length=1000, responses=1, predicted=0, masked=False)
    deep = replace(SHAPE, layers=50)
    plain, checkpointed = (
        example_workload(shape=deep),
        example_workload("learner.activation_checkpointing=true", shape=deep),
    )
    assert saved_activation_bytes(checkpointed, batch) < saved_activation_bytes(plain, batch) / 5
    inputs = 50 * 1000 * 64 * 4
    assert saved_activation_bytes(checkpointed, batch) == inputs + 2 * saved_activation_bytes(
        replace(plain, shape=replace(deep, layers=1)), batch
    )


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
@pytest.mark.parametrize("experts", [0, 4])
def test_adapters_are_counted_as_peft_makes_them(targets: tuple[str, ...], experts: int) -> None:
    """LoRA parameters are counted as PEFT creates them; experts are one tensor and get no adapters."""
    shape = replace(SHAPE, experts=experts, experts_per_token=experts // 2)
    model = model_of(shape, "Qwen3Moe" if experts else "Qwen3")
    chosen = targets[:1] if experts else targets
    adapters = add_adapters(model, ModelConfig(lora_rank=8, lora_targets=list(chosen)))
    trained = {id(parameter): parameter.numel() for parameter in model.parameters() if parameter.requires_grad}
    assert trained.keys() == {id(part) for adapter in adapters.values() for part in adapter.parts}
    assert shape.adapters(8, chosen) == sum(trained.values())
    assert shape.adapters(0) == 0


def test_adapters_of_unknown_size_are_not_planned_for() -> None:
    with pytest.raises(ConfigError, match=r"lora_targets=\['c_attn'\]: the planner knows the sizes of q_proj, "):
        example_workload("model.lora_rank=8", "model.lora_targets=[c_attn]")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adapters_alone_have_gradients_and_moments(stage: int) -> None:
    workload = replace(example_workload("model.lora_rank=8"), zero_stage=stage, precision="bfloat16")
    adapters, share = SHAPE.adapters(8), 1 if stage == 0 else 1 / 4
    footprint = learner_footprint(workload, Power(gpu()), 4)
    assert (footprint.persistent["gradients"] + footprint.persistent["optimizer"]) * 2**30 == pytest.approx(
        12 * adapters * share
    )
    weights = 2 * (SHAPE.parameters + adapters) * (1 / 4 if stage == 3 else 1)
    assert footprint.persistent["weights"] * 2**30 == pytest.approx(weights)
    assert "gradient of the head" not in footprint.transient


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_a_parameter"),
    [
        (0, "float32", 16.0),  # weights, gradients, two moments
        (1, "float32", 4 + 16 / 4),  # the flat float32 copy, gradients and moments are shared
        (2, "float32", 4 + 16 / 4),
        (3, "float32", 4 + 20 / 4),  # a small model is gathered whole
        (2, "bfloat16", 2 + 16 / 4),
        (3, "bfloat16", 2 + 18 / 4),
    ],
)
def test_what_a_rank_holds_by_zero_stage(stage: int, precision: str, bytes_a_parameter: float) -> None:
    workload = replace(example_workload(), zero_stage=stage, precision=precision)
    persistent = learner_footprint(workload, Power(gpu()), 4).persistent
    assert sum(persistent.values()) * 2**30 == pytest.approx(bytes_a_parameter * SHAPE.parameters)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_leaves_the_weights(stage: int) -> None:
    workload = replace(example_workload(), zero_stage=stage, precision="bfloat16")
    held, left = (
        learner_footprint(replace(workload, offloads=offloads), Power(gpu()), 4).persistent
        for offloads in (False, True)
    )
    assert set(held) - set(left) == {"float32 weights", "gradients", "optimizer"}
    assert (sum(held.values()) - sum(left.values())) * 2**30 == pytest.approx(16 * SHAPE.parameters / 4)


def test_moments_in_8_bits_take_a_quarter() -> None:
    workload = replace(example_workload(), zero_stage=2)
    full, small = (
        learner_footprint(replace(workload, moments_8bit=small), Power(gpu()), 4).persistent for small in (False, True)
    )
    assert small["optimizer"] / full["optimizer"] == pytest.approx(1 / 4, rel=0.02)
    assert {**small, "optimizer": 0.0} == {**full, "optimizer": 0.0}
    larger = checkpoint_gib(replace(workload, moments_8bit=True)) - checkpoint_gib(workload)
    assert larger * 2**30 == pytest.approx(8 * SHAPE.parameters), "a scale for each number of a moment"


def test_a_teacher_in_bfloat16_holds_a_working_copy_beside_its_average() -> None:
    workload = replace(example_workload(), precision="bfloat16", averages=True, teacher_copies=1)
    exact, half = (
        teacher_footprint(replace(workload, teacher_half=half), Power(gpu()), 1).persistent for half in (False, True)
    )
    assert exact["weights"] * 2**30 == 4 * SHAPE.parameters
    assert half["weights"] * 2**30 == 2 * SHAPE.parameters
    assert half["float32 average"] * 2**30 == 4 * SHAPE.parameters
    frozen = teacher_footprint(replace(workload, teacher_half=True, averages=False), Power(gpu()), 1).persistent
    assert "float32 average" not in frozen


def test_processes_of_an_engine_share_its_weights_and_room() -> None:
    workload = replace(
        example_workload(shape=KNOWN["qwen3-32b"]), precision="bfloat16", engine_tokens=8192, engine_memory_fraction=0.9
    )
    small = gpu_cluster(8, memory_gib=45.0)
    alone = shortfalls(workload, Split(6, 0, 2), small, memory_footprints(workload, Split(6, 0, 2), small, {}))
    assert any("GiB for keys and values" in reason for reason in alone)
    shared = replace(workload, tensor_parallel=2)
    footprints = memory_footprints(shared, Split(3, 0, 2), small, {})
    assert footprints[0].persistent["weights"] == pytest.approx(
        memory_footprints(workload, Split(6, 0, 2), small, {})[0].persistent["weights"] / 2
    )
    assert footprints[0].persistent["KV cache"] > 0
    assert not [reason for reason in shortfalls(shared, Split(3, 0, 2), small, footprints) if "rollout" in reason]
    assert "claim 9 devices" in shortfalls(shared, Split(3, 1, 2), small, footprints)[0]
    uneven = shortfalls(replace(workload, tensor_parallel=3), Split(1, 0, 2), small, footprints)
    assert "64 attention heads cannot be split evenly. Set it to one of 1, 2, 4, 8, 16, 32, 64." in uneven[0]
    wide = replace(workload, tensor_parallel=16)
    assert "are on one node; it has 8 devices" in shortfalls(wide, Split(1, 0, 1), small, footprints)[0]


def test_engines_that_sleep_leave_their_memory_to_the_learners() -> None:
    """Need of a shared GPU: the larger of two moments, not their sum; on CPU sleeping frees nothing."""
    workload = replace(
        example_workload(shape=KNOWN["qwen3-0.6b"]), precision="bfloat16", engine_memory_fraction=0.2, zero_stage=1
    )
    together = Split(1, 1, 1, shared=True)

    def reasons(asleep: bool, gib: float) -> list[str]:
        each, cluster = replace(workload, engines_sleep=asleep), gpu_cluster(1, memory_gib=gib)
        return shortfalls(each, together, cluster, memory_footprints(each, together, cluster, {}))

    least = {asleep: next(gib for gib in range(1, 200) if not reasons(asleep, gib)) for asleep in (True, False)}
    assert least[True] < least[False]
    message = " ".join(reasons(True, least[True] - 1))
    assert "1 x rollout 0.0 + " in message
    assert "while it learns; it has" in message
    assert "while it" not in reasons(False, least[False] - 1)[0]
    cpu = DeviceCluster(replace(gpu(memory_gib=1.0), shared=True), 1, 1)
    awake, asleep = (replace(workload, engines_sleep=sleep) for sleep in (False, True))
    footprints = memory_footprints(workload, together, cpu, {})
    assert shortfalls(awake, together, cpu, footprints) == shortfalls(asleep, together, cpu, footprints) != []


def test_teachers_share_a_copy() -> None:
    """Gathered weights: the embedding twice (flat and in place) or two layers, and a head and a norm per copy."""
    shape = KNOWN["qwen3-8b"]
    workload = replace(example_workload(shape=shape), precision="bfloat16", teacher_copies=2)
    alone, four = (teacher_footprint(workload, Power(gpu()), 4, shards).persistent for shards in (1, 4))
    assert four["weights"] == alone["weights"] / 4
    head = 151_936 * 4096
    layer = (shape.parameters - 2 * head - 4096) / 36
    assert head > 2 * layer
    assert four["gathered weights"] * 2**30 == pytest.approx(4 * (2 * head + 2 * (head + 4096)), rel=1e-6)
    tied = replace(workload, shape=replace(shape, tied=True))
    persistent = teacher_footprint(tied, Power(gpu()), 4, 4).persistent
    assert persistent["gathered weights"] * 2**30 == pytest.approx(4 * (head + layer + 2 * (head + 4096)), rel=1e-6)
    assert "gathered weights" not in alone


def test_a_large_model_is_never_gathered_whole() -> None:
    workload = replace(example_workload(shape=KNOWN["qwen3-32b"]), zero_stage=3, precision="bfloat16")
    persistent = learner_footprint(workload, Power(gpu()), 32).persistent
    assert persistent["gathered weights"] * 2**30 == 2e9


def test_an_engine_on_a_gpu_takes_its_share_and_no_more() -> None:
    workload = replace(example_workload(shape=KNOWN["qwen3-8b"]), engine_memory_fraction=0.85, precision="bfloat16")
    assert rollout_footprint(workload, Power(gpu(80)), 2).gib == pytest.approx(0.85 * 80)


def test_logits_without_fusing_grow_with_the_micro_batch() -> None:
    few, many = (
        unfused_logits_gib(example_workload(micro_batch_tokens=size, tree_tokens=0), 1) for size in (1000, 4000)
    )
    assert few == 4 * 4 * 500 * 40 * (1000 // 139) / 2**30  # rows of 139 tokens, 40 of them predicted
    assert many / few == (4000 // 139) / (1000 // 139)


@pytest.mark.parametrize(
    ("changes", "gib", "message"),
    [
        ({"shape": KNOWN["qwen3-8b"], "zero_stage": 1}, 40, "Set learner.zero_stage=3, or raise learner.num_workers."),
        (
            {"shape": KNOWN["qwen3-8b"], "zero_stage": 3},
            30,
            "Raise learner.num_workers: ZeRO-3 divides weights, gradients and moments among the learners.",
        ),
        (
            {"shape": KNOWN["qwen3-0.6b"], "micro_batch_tokens": 100_000, "group_size": 256},
            24,
            "Set learner.activation_checkpointing=true, or lower learner.micro_batch_tokens.",
        ),
        (
            {"shape": KNOWN["qwen3-14b"]},
            40,
            "raise teacher.shards, the number of workers that share one, or use a smaller model or a method",
        ),
        ({"shape": KNOWN["qwen3-8b"]}, 32, "lower teacher.batch_tokens, or raise teacher.shards"),
        (
            {"max_response_tokens": 200_000, "shape": KNOWN["qwen3-0.6b"]},
            20,
            "one sequence of 2048 + 200000 tokens needs 21.6. Lower rollout.max_response_tokens",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_the_way_out(changes: dict, gib: float, message: str) -> None:
    workload = replace(example_workload(), precision="bfloat16", **changes)
    split, cluster = Split(2, 1, 2), gpu_cluster(memory_gib=gib)
    reasons = shortfalls(workload, split, cluster, memory_footprints(workload, split, cluster, {}))
    assert any(message in reason for reason in reasons), reasons


def test_weights_published_on_the_gpu_count_once() -> None:
    workload = example_workload()
    ipc = replace(workload, keeps_published=True)
    before, after = (
        {one.role: dict(one.persistent) for one in memory_footprints(job, Split(1, 1, 1), gpu_cluster(), {})}
        for job in (workload, ipc)
    )
    assert after["learner"].pop("published weights") * 2**30 == workload.weights_bytes
    assert after == before


def test_what_fits_is_not_complained_about() -> None:
    workload, split, cluster = example_workload(), Split(2, 1, 2), gpu_cluster()
    assert shortfalls(workload, split, cluster, memory_footprints(workload, split, cluster, {})) == []


@pytest.mark.parametrize(
    ("transport", "counted"),
    [("auto", True), ("shared_memory", True), ("object_store", False), ("collective", False)],
)
def test_a_transport_without_a_shared_segment_counts_none(transport: str, counted: bool) -> None:
    """On CPUs `auto` maps the weights in every process, and no other transport does."""
    device = replace(gpu(), name="cpu", shared=True)
    workload = example_workload(f"weights.transport={transport}")
    cluster = DeviceCluster(device, 1, 1)
    for footprint in memory_footprints(workload, Split(1, 1, 1), cluster, {}):
        assert ("shared memory" in footprint.persistent) == counted
