"""A run of ours beside TRL's SDPO: `python -m benchmarks.peer [--steps 20] [--warmup 3]`

The same model, prompts, group size, response length, loss and optimizer settings, in float32 on the same two cores, one
after the other: samples/s end to end over the steps after warm-up, and where the time of a step goes. TRL is set up in
an environment of its own (`.peers`), which sees this one's torch and transformers. How many processes and
samples a forward suit TRL best is tried first, in short runs; it then runs with what was fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.timed_runs import train_on_real_engines
from demopsd_dist.config import Config, load
from launch._processes import fenced
from launch._task import provenance
from workers.cluster import session

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
REQUIREMENTS = Path(__file__).with_name("trl_requirements.txt")
CORES = 2
WORDS = [
    "method=sdpo",
    "sdpo.divergence=reverse_kl",
    "sdpo.aggregation=sequence_mean",
    "evaluation.at_start=false",
    "leakage.every_steps=0",
]
"""Over configs/demo.yaml. Divergence and aggregation are as TRL has them."""
TRIAL_WARMUP, TRIAL_STEPS = 2, 4
TRIAL_S, RUN_S = 300, 900


@dataclass(frozen=True)
class WorkShape:
    """How TRL uses the cores: data-parallel processes, each with its share of the threads, and samples a forward."""

    processes: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.processes} x {CORES // self.processes} threads, {self.micro_batch} samples a forward"


SHAPES = [WorkShape(1, 192), WorkShape(1, 48), WorkShape(2, 96), WorkShape(2, 48), WorkShape(2, 32), WorkShape(2, 24)]


@dataclass(frozen=True)
class PeerStep:
    samples: float
    tokens: float
    reward: float
    step_s: float
    stages: dict[str, float]


@dataclass(frozen=True)
class PeerFigures:
    """Of some steps of a run; `stages` and `step_s` are means, in seconds."""

    samples_per_s: float
    tokens_per_sample: float
    reward: float
    step_s: float
    fastest_s: float
    slowest_s: float
    stages: dict[str, float]


def figures(steps: Sequence[PeerStep]) -> PeerFigures:
    seconds, samples = sum(step.step_s for step in steps), sum(step.samples for step in steps)
    names = sorted({name for step in steps for name in step.stages})
    return PeerFigures(
        samples_per_s=samples / seconds,
        tokens_per_sample=sum(step.tokens for step in steps) / samples,
        reward=sum(step.reward for step in steps) / len(steps),
        step_s=seconds / len(steps),
        fastest_s=min(step.step_s for step in steps),
        slowest_s=max(step.step_s for step in steps),
        stages={name: sum(step.stages.get(name, 0.0) for step in steps) / len(steps) for name in names},
    )


def ours(words: Sequence[str]) -> list[PeerStep]:
    config = load(DEMO, words)
    session.join(config)
    try:
        log = train_on_real_engines(config)
    finally:
        session.leave()
    return [
        PeerStep(
            samples=metrics["rollout/samples"],
            tokens=metrics["rollout/tokens"],
            reward=metrics["rollout/reward_mean"],
            step_s=metrics["perf/step_s"],
            stages={key[len("time/") : -len("_s")]: spent for key, spent in metrics.items() if key.startswith("time/")},
        )
        for metrics in log.steps
    ]


def trl_python() -> Path:
    """The interpreter of TRL's environment, made where there is none yet."""
    folder = ROOT / ".peers" / REQUIREMENTS.read_text().strip().replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        paths = {"base": str(folder), "platbase": str(folder)}
        site = Path(sysconfig.get_path("purelib", "venv", paths))
        (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", REQUIREMENTS], check=True)
        done.touch()
    return python


def trl(shape: WorkShape, words: Sequence[str], within_s: float) -> list[PeerStep]:
    """
    Raises:
        RuntimeError: TRL failed, with its last words.
        subprocess.TimeoutExpired: it took longer than `within_s`.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={shape.processes}"]
    command = [
        str(trl_python()),
        *(launcher if shape.processes > 1 else []),
        *["-m", "benchmarks.peer.trl_sdpo", f"--micro-batch={shape.micro_batch}", str(DEMO), *words],
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(CORES // shape.processes),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=within_s)
    if done.returncode:
        raise RuntimeError(f"TRL ({shape}) ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return [PeerStep(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def tried() -> dict[WorkShape, float]:
    """Samples/s of TRL's shapes in short runs."""
    found: dict[WorkShape, float] = {}
    for shape in SHAPES:
        steps = trl(shape, [*WORDS, f"steps={TRIAL_WARMUP + TRIAL_STEPS}"], TRIAL_S)
        found[shape] = figures(steps[TRIAL_WARMUP:]).samples_per_s
        print(f"TRL, {shape}: {found[shape]:.1f} samples/s", flush=True)
    return found


def stage_rows(here: PeerFigures, there: PeerFigures) -> list[tuple[str, float | None, float | None]]:
    """What takes a step's time, on both sides, seconds."""
    mine, theirs = here.stages, there.stages
    rest = here.step_s - mine["wait_for_rollouts"] - mine["learn"] - mine["publish_weights"]
    learned = ("student", "loss", "backward")
    return [
        ("rollouts: sampled, rewarded, scored", mine["wait_for_rollouts"], None),
        ("– sampling", mine["sample"], theirs["sample"]),
        ("– rewards, teacher's prompts", None, theirs["reward"]),
        ("– support: student forward without gradient", mine["support"], None),
        ("– teacher forward", mine["score"], theirs["teacher"]),
        ("learning", mine["learn"], sum(theirs[name] for name in learned)),
        *((f"– {name}", None, theirs[name]) for name in learned),
        ("publishing weights, EMA", mine["publish_weights"], None),
        ("rest", rest, theirs["rest"]),
        ("step", here.step_s, there.step_s),
    ]


def report(found: dict[str, Any], here: PeerFigures, there: PeerFigures, config: Config) -> list[str]:
    def cell(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds:.3f}"

    def side(name: str, side: PeerFigures) -> str:
        return (
            f"| {name} | {side.samples_per_s:.1f} | {side.step_s:.2f} ({side.fastest_s:.2f} to {side.slowest_s:.2f}) | "
            f"{side.tokens_per_sample:.1f} | {side.reward:.3f} |"
        )

    rollout = config.rollout
    return [
        "# A run beside TRL's SDPO",
        "",
        f"`method=sdpo` on MiniSci: {rollout.prompts_per_step} prompts x {rollout.group_size} responses a step, of at "
        f"most {rollout.max_response_tokens} tokens; float32, two CPU cores, one run after the other; {found['steps']} "
        f"steps after {found['warmup']} for warm-up. Same model, prompts in the same order, optimizer and reward; EMA "
        f"teacher, reverse KL on the student's top {config.sdpo.top_k} and tail.",
        "",
        "| | samples/s | step, s (fastest to slowest) | response tokens a sample | reward |",
        "|---|---|---|---|---|",
        side("this project", here),
        side(f"{found['requirement']}: {found['shape']}", there),
        "",
        f"**Ratio: {found['ratio']:.2f}**.",
        "",
        "Where a step's time goes, seconds. Here scoring overlaps sampling, which ends with the last response; TRL's "
        "stages follow one another. TRL's optimizer and EMA are in `rest`.",
        "",
        "| stage | this project | TRL |",
        "|---|---|---|",
        *(f"| {name} | {cell(mine)} | {cell(theirs)} |" for name, mine, theirs in stage_rows(here, there)),
        "",
        f"How TRL was set: the fastest of these, tried for {TRIAL_STEPS} steps each.",
        "",
        "| processes, threads, micro-batch | samples/s |",
        "|---|---|",
        *(f"| {shape} | {speed:.1f} |" for shape, speed in found["tried"].items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    words = [*WORDS, f"steps={args.warmup + args.steps}"]
    config = load(DEMO, words)
    with fenced():
        speeds = tried()
        shape = max(speeds, key=speeds.__getitem__)
        load_before = os.getloadavg()[0]
        theirs = trl(shape, words, RUN_S)
        mine = ours(words)
    here, there = figures(mine[args.warmup :]), figures(theirs[args.warmup :])
    found = {
        "ratio": here.samples_per_s / there.samples_per_s,
        "requirement": REQUIREMENTS.read_text().strip(),
        "shape": str(shape),
        "steps": args.steps,
        "warmup": args.warmup,
        "load_before": load_before,
        "ours": asdict(here),
        "trl": asdict(there),
        "tried": {str(shape): speed for shape, speed in speeds.items()},
        "steps_ours": [asdict(step) for step in mine],
        "steps_trl": [asdict(step) for step in theirs],
        **provenance(config),
    }
    save(args.out, "peer-cpu", found, report(found, here, there, config))
