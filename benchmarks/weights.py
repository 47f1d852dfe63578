"""Publishing weights: `python -m benchmarks.weights [--models 100M 500M] [--receivers 1 2] [--repeats 5]`

A randomly initialised Qwen3 model is published on one machine, by each transport, to one and to two receivers:

* `transport`: the receivers check the digest of every bucket in the memory where it arrives, and do nothing else;
* `full`: the receivers are vLLM engines, which load and re-pack the weights and answer the probe.

Publishes to one and to two receivers take turns, and between them the rate at which this machine copies memory is
measured, so that all see the same load. Writes the raw figures and a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from demopsd_dist.config import Config, Precision, Transport, load
from demopsd_dist.minisci import MODEL_DIR
from workers.actor_group import ActorGroup, ResourceClaim
from workers.cluster import session
from workers.cluster.placement import Bundle
from workers.forward import ResponseModel, load_causal_lm
from workers.learner import worker as learner
from workers.learner.zero import buckets_of
from workers.rollout import worker as rollout
from workers.rollout.pool import FixedPool
from workers.weights.buckets import Ack
from workers.weights.publisher import WeightPublisher
from workers.weights.transports import Receiver

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COPIED_BYTES = 256 << 20
START_S = 1200.0
NOBODY = ActorGroup("teacher", {})
MODELS: dict[str, tuple[Precision, dict[str, int]]] = {
    "100M": (
        Precision.float32,
        {"hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 2304, "num_attention_heads": 12}
        | {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32768},
    ),
    "500M": (
        Precision.bfloat16,
        {"hidden_size": 1536, "num_hidden_layers": 13, "intermediate_size": 4608, "num_attention_heads": 24}
        | {"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 49152},
    ),
}
Row = dict[str, Any]


class BucketSender(learner.LearnerWorker):
    """A learner without DeepSpeed and so without an optimizer's memory: it packs and sends as any other."""

    def start(self, meeting_point: tuple[str, int]) -> None:
        self._device = torch.device("cpu")
        torch.set_num_threads(1)
        model = ResponseModel(load_causal_lm(self._folder, self._config.model.precision).eval())
        self._engine = _Bare(model)
        self._adapters = {}
        named = list(model.model.named_parameters())
        self._buckets = list(buckets_of(named, self._config.weights.bucket_mib << 20))


class _Bare:
    def __init__(self, module: ResponseModel) -> None:
        self.module = module

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)


class SilentBucketSender(BucketSender):
    """Without the forward for the probe."""

    def probe(self, tokens: Any) -> Any:
        return np.zeros(len(tokens) - 1, np.float32)


class BucketReader(Receiver):
    """Verifies what arrives."""

    def __init__(self, rank: int, config: Config, folder: Path) -> None:
        super().__init__(f"reader {rank}")

    def start(self, blank: bool) -> None:
        pass

    def receive(self, version: int, bucket_refs: Any, probe: Any) -> Ack:
        for _ in self.arriving(version, bucket_refs):
            pass
        said = np.zeros(len(probe) - 1, np.float32)
        return Ack(version, said, self.waited_s, self.verified_s, time.perf_counter() - self.began_s)

    def repacking_s(self) -> float:
        return 0.0


class LoadingEngine(rollout.RolloutWorker):
    """A rollout worker that knows how long vLLM took to re-pack weights for its kernels."""

    async def start(self, *, blank: bool = False) -> None:
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        self._repacking_s = 0.0
        for method in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
            method.process_weights_after_loading = self._timed(method.process_weights_after_loading)
        await super().start(blank=blank)

    def _timed(self, work: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            started = time.perf_counter()
            work(*arguments)
            self._repacking_s += time.perf_counter() - started

        return timed

    async def repacking_s(self) -> float:
        """Since the last call."""
        taken, self._repacking_s = self._repacking_s, 0.0
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--transports", nargs="+", default=["shared_memory", "object_store"])
    parser.add_argument("--kinds", nargs="+", choices=["transport", "full"], default=["transport", "full"])
    parser.add_argument("--repeats", type=int, default=5, help="publishes after the first")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep the rows of other cases that are there")
    args = parser.parse_args()
    raw = args.out / "weights-cpu.json"
    rows: list[Row] = json.loads(raw.read_text())["rows"] if args.add and raw.exists() else []
    session.join(load(ROOT / "configs" / "demo.yaml", []))
    try:
        for name in args.models:
            with model_folder(name) as folder:
                for kind in args.kinds:
                    case = {"model": name, "kind": kind}
                    for row in asyncio.run(measured(case, folder, args.transports, args.receivers, args.repeats)):
                        rows = [old for old in rows if not same_case(old, row)] + [row]
                        print(line(row), flush=True)
                        write(rows, args.out)
    finally:
        session.leave()


def same_case(one: Row, other: Row) -> bool:
    return all(one[key] == other[key] for key in ("model", "kind", "receivers", "transport"))


@contextmanager
def model_folder(name: str) -> Iterator[Path]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    precision, sizes = MODELS[name]
    torch.manual_seed(0)
    settings = json.loads((MODEL_DIR / "config.json").read_text())
    for key in ("layer_types", "dtype"):
        settings.pop(key, None)
    model = Qwen3ForCausalLM(Qwen3Config(**{**settings, **sizes})).to(getattr(torch, precision.value))
    with tempfile.TemporaryDirectory(prefix="demopsd-weights-") as folder:
        model.save_pretrained(folder)
        del model
        left_out = shutil.ignore_patterns("*.safetensors", "config.json")
        shutil.copytree(MODEL_DIR, folder, ignore=left_out, dirs_exist_ok=True)
        yield Path(folder)


async def measured(case: Row, folder: Path, transports: list[str], counts: list[int], repeats: int) -> list[Row]:
    """A row for each transport and number of receivers, all with the same actors."""
    precision, _ = MODELS[case["model"]]
    words = [f"model.path={folder}", f"model.precision={precision.value}", "rollout.kv_cache_gib=1"]
    words += ["learner.num_workers=1", "learner.zero_stage=1", "weights.max_logp_diff=0.5"]
    config = load(ROOT / "configs" / "demo.yaml", words)
    full = case["kind"] == "full"
    placement = ResourceClaim(
        [Bundle("sender", 0, 0.1, 0), *(Bundle("receiver", i, 0.1, 0) for i in range(max(counts)))]
    )
    sender = placement.start(
        "sender",
        BucketSender if full else SilentBucketSender,
        lambda rank: (rank, config, folder),
        learner.environment(config),
    )
    receivers = placement.start(
        "receiver",
        LoadingEngine if full else BucketReader,
        lambda rank: (rank, config, folder),
        rollout.environment(config),
    )
    try:
        await placement.ready(START_S)
        await sender.each(lambda worker, _: worker.start.remote(("", 0)), within_s=START_S, what="a model")
        await receivers.each(lambda worker, _: worker.start.remote(blank=True), within_s=START_S, what="an engine")
        rows: list[Row] = []
        for transport in transports:
            config.weights.transport = Transport(transport)
            publisher = WeightPublisher(sender, FixedPool(receivers, config), NOBODY, config)
            await publisher.start()
            found = await in_turn(publisher, sender, receivers, counts, repeats)
            rows += [case | {"transport": transport, "receivers": count} | found[count] for count in counts]
        return rows
    finally:
        sender.kill()
        receivers.kill()
        placement.release()


class PartialPublisher(WeightPublisher):
    """A publisher that has started, to some of its receivers."""

    def __init__(self, publisher: WeightPublisher, receivers: ActorGroup, config: Config) -> None:
        vars(self).update(vars(publisher), _fleet=FixedPool(receivers, config), _said={})


async def in_turn(
    publisher: WeightPublisher, sender: ActorGroup, receivers: ActorGroup, counts: list[int], repeats: int
) -> dict[int, Row]:
    """For each number of receivers medians over the publishes, which take turns. The first, which touches fresh memory,
    goes to all receivers and is told apart."""
    started = time.perf_counter()
    await publisher.publish(0)
    first_s = time.perf_counter() - started
    await receivers.each(lambda w, _: w.repacking_s.remote(), within_s=60, what="its times")
    some = {count: ActorGroup("receiver", dict(list(receivers.handles.items())[:count])) for count in counts}
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for turn in range(repeats):
        for count, group in some.items():
            before = copy_gb_per_s()
            figures = await timed(PartialPublisher(publisher, group, publisher._config), turn + 1, sender, group)
            copied = (before + copy_gb_per_s()) / 2
            found[count].append(figures | {"copy_gb_per_s": copied, "of_copy_rate": figures["gb_per_s"] / copied})
    size = {"gigabytes": gigabytes(publisher), "buckets": len(publisher.plan.buckets), "first_s": first_s}
    return {
        count: size | {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        for count, figures in found.items()
    }


def gigabytes(publisher: WeightPublisher) -> float:
    return sum(publisher.plan.sizes) / 1e9


async def timed(
    publisher: WeightPublisher, version: int, sender: ActorGroup, receivers: ActorGroup
) -> dict[str, float]:
    asked = sender.asked + receivers.asked
    started = time.perf_counter()
    await publisher.publish(version)
    seconds = time.perf_counter() - started
    calls = sender.asked + receivers.asked - asked
    repacking = await receivers.each(lambda w, _: w.repacking_s.remote(), within_s=60, what="its times")
    slowest = max(range(len(receivers)), key=lambda i: publisher.acks[i].loaded_s)
    return {
        "seconds": seconds,
        "gb_per_s": gigabytes(publisher) / seconds,
        "packed_s": sum(bucket_ref.packed_s for bucket_ref in publisher.bucket_refs),
        "verified_s": publisher.acks[slowest].verified_s,
        "loaded_s": publisher.acks[slowest].loaded_s,
        "repacked_s": repacking[slowest],
        "calls": calls,
    }


def copy_gb_per_s() -> float:
    """Bytes copied a second with all threads, the best of three."""
    source, target = (torch.full((COPIED_BYTES,), i, dtype=torch.uint8) for i in range(2))

    def once() -> float:
        started = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - started

    return COPIED_BYTES / min(once() for _ in range(3)) / 1e9


def digest_gb_per_s() -> float:
    data = np.ones(COPIED_BYTES, np.uint8)
    started = time.perf_counter()
    xxhash.xxh3_128_digest(data.data)
    return COPIED_BYTES / (time.perf_counter() - started) / 1e9


def write(rows: list[Row], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    load_1, *_ = os.getloadavg()
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "digest_gb_per_s": digest_gb_per_s(),
        "load_average_at_end": load_1,
    }
    (out / "weights-cpu.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    (out / "weights-cpu.md").write_text(report(rows, machine))


def report(rows: list[Row], machine: Row) -> str:
    kinds = {
        "transport": "Bytes arrived and their digest checked, by receivers that do nothing else.",
        "full": "vLLM engines as receivers: load, re-pack, and the probe compared.",
    }
    lines = [
        "# Publishing weights",
        "",
        f"{machine['cores']} cores ({machine['machine']}), load average {machine['load_average_at_end']:.0f}, torch "
        f"{machine['torch']}; XXH3 digests {machine['digest_gb_per_s']:.1f} GB/s on one core. Seconds are medians of a "
        "whole publish, seen from the driver; GB/s counts the model once, whatever the number of receivers. `of copy` "
        "is relative to the rate at which the machine copies memory, measured between the publishes. `x 1` is the time "
        "relative to one receiver, in turn with it; `first s` that of the very first publish, "
        "to all receivers. The columns after it say where the time goes, and overlap: pack (copy and digest "
        "at the sender), verify (digest at the slowest receiver), load (from its first bucket to its last "
        "tensor in place), of which re-pack for the kernels.",
    ]
    for kind, meaning in kinds.items():
        lines += ["", f"## {kind.capitalize()}", "", meaning, ""]
        lines += ["| model | GB | transport | receivers | s | GB/s | copy GB/s | of copy | x 1 | first s | pack s |"]
        lines[-1] += " verify s | load s | re-pack s | calls |"
        lines += ["|" + "---|" * 15]
        for row in rows:
            if row["kind"] == kind:
                lines.append(line(row, rows))
    return "\n".join(lines) + "\n"


def line(row: Row, rows: list[Row] | None = None) -> str:
    alone = [other for other in rows or [] if same_case(other, row | {"receivers": 1})]
    ratio = f"{row['seconds'] / alone[0]['seconds']:.2f}" if alone else "–"
    return (
        f"| {row['model']} | {row['gigabytes']:.2f} | {row['transport']} | {row['receivers']} | {row['seconds']:.2f} | "
        f"{row['gb_per_s']:.2f} | {row['copy_gb_per_s']:.1f} | {row['of_copy_rate']:.0%} | {ratio} | "
        f"{row['first_s']:.2f} | {row['packed_s']:.2f} | {row['verified_s']:.2f} | {row['loaded_s']:.2f} | "
        f"{row['repacked_s']:.2f} | {row['calls']:.0f} |"
    )


if __name__ == "__main__":
    main()
