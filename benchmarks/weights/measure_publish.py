"""Publishing weights: `python -m benchmarks.weights [--models 100M 500M] [--receivers 1 2] [--repeats 5]`

A randomly initialised Qwen3 model is published on one machine, by each transport, to one and to two receivers:

* `transport`: the receivers check the digest of every bucket in the memory where it arrives, and do nothing else;
* `full`: the receivers are vLLM engines, which load and re-pack the weights and compute the canary;
* `hosts`: as `transport`, with the receivers on a simulated host of their own (`over_hosts.py`), which needs Linux,
  iproute2 and root's rights.

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
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xxhash

from benchmarks.common.results_files import RESULTS
from benchmarks.weights.over_hosts import RECEIVERS, SENDERS, run_over_hosts
from benchmarks.weights.publish_actors import (
    BucketReader,
    BucketSender,
    LoadingEngine,
    PartialPublisher,
    SilentBucketSender,
)
from benchmarks.weights.publish_page import KINDS, report, same_case, table_line
from demopsd_dist.config import Config, Precision, Transport, load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import LostStateError, LostWorkerError
from workers.actor_group import ActorGroup, no_actors
from workers.cluster import session
from workers.cluster.placement import Bundle
from workers.cluster.resource_claim import ResourceClaim
from workers.learner import worker as learner
from workers.rollout import worker as rollout
from workers.rollout.dispatch import RolloutWorkers
from workers.rollout.pool import FixedPool
from workers.weights.publisher import WeightPublisher

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
COPIED_BYTES = 256 << 20
START_S = 1200.0
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


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2], help="numbers of receivers, in turn")
    parser.add_argument("--transports", nargs="+", default=["shared_memory", "object_store", "collective"])
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=["transport", "full"])
    parser.add_argument("--repeats", type=int, default=5, help="publishes after the first")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", default="weights-cpu", help="name of the files of results")
    parser.add_argument("--note", default="", help="sentence about the machine, for the page")
    parser.add_argument("--add", action="store_true", help="keep the rows of other cases in the results")
    parser.add_argument(
        "--joined", metavar="ADDRESS", help="cluster to measure kind `hosts` on; without it one is made"
    )
    args = parser.parse_args()
    if "hosts" in args.kinds and args.joined is None:
        if len(args.kinds) > 1:
            parser.error("kind hosts is measured by itself, with --add")
        sys.exit(run_over_hosts(sys.argv[1:]))
    raw = args.out / f"{args.name}.json"
    rows: list[Row] = json.loads(raw.read_text())["rows"] if args.add and raw.exists() else []
    session.join(load(DEMO, [f"ray_address={args.joined}"] if args.joined else []))
    try:
        for name in args.models:
            with random_model(name) as folder:
                for kind in args.kinds:
                    case = {"model": name, "kind": kind}
                    for row in asyncio.run(measure(case, folder, args.transports, args.receivers, args.repeats)):
                        rows = [old for old in rows if not same_case(old, row)] + [row]
                        print(table_line(row), flush=True)
                        write_results(rows, args.out, args.name, args.note)
    finally:
        session.leave()


@contextmanager
def random_model(name: str) -> Iterator[Path]:
    """Temporary folder of a Qwen3 with random weights and MiniSci's tokenizer."""
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


@dataclass(frozen=True)
class PublishActors:
    """The sender and the receivers of one measurement. Readers are typed as engines: they have the same methods."""

    sender: ActorGroup[BucketSender]
    receivers: ActorGroup[LoadingEngine]

    def some(self, count: int) -> PublishActors:
        """The sender and the first receivers."""
        handles = dict(list(self.receivers.handles.items())[:count])
        return PublishActors(self.sender, ActorGroup("rollout", handles, LostWorkerError))

    @property
    def call_count(self) -> int:
        """Remote calls so far."""
        return self.sender.call_count + self.receivers.call_count

    async def repacking_s(self) -> list[float]:
        """Seconds that each receiver spent re-packing since the last call."""
        return await self.receivers.each(
            lambda worker, _: worker(LoadingEngine.repacking_s), within_s=60, what="its times"
        )


async def measure(case: Row, folder: Path, transports: Sequence[str], counts: Sequence[int], repeats: int) -> list[Row]:
    """A row for each transport and number of receivers, all with the same actors."""
    precision, _ = MODELS[case["model"]]
    words = [f"model.path={folder}", f"model.precision={precision.value}", "rollout.kv_cache_gib=1"]
    words += ["learner.num_workers=1", "learner.zero_stage=1", "weights.max_logp_diff=0.5"]
    config = load(DEMO, words)
    apart = case["kind"] == "hosts"
    learner_bundle = Bundle("learner", 0, 0.1, 0, SENDERS if apart else None)
    receiving = [Bundle("rollout", i, 0.1, 0, RECEIVERS if apart else None) for i in range(max(counts))]
    claim = ResourceClaim([learner_bundle, *receiving])
    actors = spawn_actors(claim, config, folder, engines=case["kind"] == "full")
    sender, receivers = actors.sender, actors.receivers
    try:
        await claim.ready(START_S)
        await sender.each(lambda worker, _: worker(BucketSender.start, ("", 0)), within_s=START_S, what="a model")
        await receivers.each(
            lambda worker, _: worker(LoadingEngine.start, random_weights=True), within_s=START_S, what="an engine"
        )
        rows: list[Row] = []
        for transport in transports:
            config.weights.transport = Transport(transport)
            pool = FixedPool(cast(RolloutWorkers, receivers), config)
            publisher = WeightPublisher(sender, pool, no_actors("teacher"), config)
            await publisher.start()
            by_count = await publish_in_turn(publisher, actors, counts, repeats, config)
            rows += [case | {"transport": transport, "receivers": count} | by_count[count] for count in counts]
        return rows
    finally:
        sender.kill()
        receivers.kill()
        claim.release()


def spawn_actors(claim: ResourceClaim, config: Config, folder: Path, *, engines: bool) -> PublishActors:
    """Spawn a sender and receivers: vLLM engines, or readers that load nothing."""
    sender = claim.spawn_group(
        "learner",
        BucketSender if engines else SilentBucketSender,
        lambda rank: (rank, config, folder),
        learner.environment(config),
        LostStateError,
    )
    receivers = claim.spawn_group(
        "rollout",
        LoadingEngine if engines else cast(type[LoadingEngine], BucketReader),
        lambda rank: (rank, config, folder),
        rollout.environment(config),
        LostWorkerError,
    )
    return PublishActors(sender, receivers)


async def publish_in_turn(
    publisher: WeightPublisher, actors: PublishActors, counts: Sequence[int], repeats: int, config: Config
) -> dict[int, Row]:
    """Medians over the publishes, by the number of receivers; the numbers take turns. The first publish, which touches
    fresh memory, goes to all receivers and is reported by itself."""
    started = time.perf_counter()
    await publisher.publish(0)
    first_s = time.perf_counter() - started
    await actors.repacking_s()
    subsets = {count: actors.some(count) for count in counts}
    publishes: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for turn in range(repeats):
        for count, subset in subsets.items():
            before = copy_gb_per_s()
            partial = PartialPublisher(publisher, subset.receivers, config)
            formed_s = await partial.form_group()
            figures = await timed_publish(partial, turn + 1, subset)
            copied = (before + copy_gb_per_s()) / 2
            figures["formed_s"] = formed_s
            publishes[count].append(figures | {"copy_gb_per_s": copied, "of_copy_rate": figures["gb_per_s"] / copied})
    size = {"gigabytes": gigabytes(publisher), "buckets": len(publisher.plan.buckets), "first_s": first_s}
    return {
        count: size | {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for count, rows in publishes.items()
    }


def gigabytes(publisher: WeightPublisher) -> float:
    """Size of a publish, GB."""
    return sum(publisher.plan.sizes) / 1e9


async def timed_publish(publisher: WeightPublisher, version: int, actors: PublishActors) -> dict[str, float]:
    """Times, rate and calls of one publish."""
    calls_before = actors.call_count
    started = time.perf_counter()
    await publisher.publish(version)
    seconds = time.perf_counter() - started
    calls = actors.call_count - calls_before
    repacking_s = await actors.repacking_s()
    slowest = max(range(len(actors.receivers)), key=lambda i: publisher.acks[i].loaded_s)
    return {
        "seconds": seconds,
        "gb_per_s": gigabytes(publisher) / seconds,
        "packed_s": sum(bucket_ref.packed_s for bucket_ref in publisher.bucket_refs),
        "verified_s": publisher.acks[slowest].verified_s,
        "loaded_s": publisher.acks[slowest].loaded_s,
        "repacked_s": repacking_s[slowest],
        "calls": calls,
    }


def copy_gb_per_s() -> float:
    """Rate at which this machine copies memory with all threads, GB/s: the best of three."""
    source, target = (torch.full((COPIED_BYTES,), i, dtype=torch.uint8) for i in range(2))

    def copy_s() -> float:
        started = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - started

    return COPIED_BYTES / min(copy_s() for _ in range(3)) / 1e9


def digest_gb_per_s() -> float:
    """Rate of XXH3 digests on one core, GB/s."""
    data = np.ones(COPIED_BYTES, np.uint8)
    started = time.perf_counter()
    xxhash.xxh3_128_digest(data.data)
    return COPIED_BYTES / (time.perf_counter() - started) / 1e9


def write_results(rows: list[Row], out: Path, name: str, note: str) -> None:
    """Write the raw figures and the page."""
    out.mkdir(parents=True, exist_ok=True)
    load_1, *_ = os.getloadavg()
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "digest_gb_per_s": digest_gb_per_s(),
        "load_average_at_end": load_1,
        "note": note,
    }
    (out / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    (out / f"{name}.md").write_text(report(rows, machine))
