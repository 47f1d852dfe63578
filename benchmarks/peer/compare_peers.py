"""A run of this project beside TRL's SDPO: `python -m benchmarks.peer [--steps 20] [--warmup 3]`

The same model, prompts, group size, response length, loss and optimizer settings, in float32 on the same two cores, one
after the other: samples/s end to end over the steps after warm-up, and the time of a step by stage. TRL is installed in
an environment of its own (`.peers`), which sees this one's torch and transformers. Short runs first find the numbers of
processes and of samples a forward that are fastest for TRL; it then runs with these.
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
from benchmarks.common.timed_runs import DEMO, train_on_real_engines
from demopsd_dist.config import Config, load
from launch._processes import fenced
from launch._task import provenance
from workers.cluster import session

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("trl_requirements.txt")
CORES = 2
WORDS = [
    "method=sdpo",
    "sdpo.divergence=reverse_kl",
    "sdpo.aggregation=sequence_mean",
    "evaluation.at_start=false",
    "leakage.every_steps=0",
]
"""Overrides of configs/demo.yaml. Divergence and aggregation are those of TRL."""
TRIAL_WARMUP, TRIAL_STEPS = 2, 4
TRIAL_S, RUN_S = 300, 900


@dataclass(frozen=True)
class WorkShape:
    """Split of TRL's work: data-parallel processes, each with its share of the threads, and samples a forward."""

    processes: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.processes} x {CORES // self.processes} threads, {self.micro_batch} samples a forward"


SHAPES = [WorkShape(1, 192), WorkShape(1, 48), WorkShape(2, 96), WorkShape(2, 48), WorkShape(2, 32), WorkShape(2, 24)]


@dataclass(frozen=True)
class PeerStep:
    """Figures of one step; `stages` in seconds."""

    samples: float
    tokens: float
    reward: float
    step_s: float
    stages: dict[str, float]


@dataclass(frozen=True)
class PeerFigures:
    """Figures over several steps of a run; `stages` and `step_s` are means, in seconds."""

    samples_per_s: float
    tokens_per_sample: float
    reward: float
    step_s: float
    fastest_s: float
    slowest_s: float
    stages: dict[str, float]


def figures_of(steps: Sequence[PeerStep]) -> PeerFigures:
    """Rates of the totals over the steps, and mean times."""
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


def run_own(words: Sequence[str]) -> list[PeerStep]:
    """Steps of this project's run."""
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
    """Interpreter of TRL's environment, which is created if it does not exist."""
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


def run_trl(shape: WorkShape, words: Sequence[str], within_s: float) -> list[PeerStep]:
    """Steps of TRL's run.

    Raises:
        RuntimeError: TRL failed; the message ends with its last output.
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


def try_shapes() -> dict[WorkShape, float]:
    """Samples/s of TRL's shapes in short runs."""
    rates: dict[WorkShape, float] = {}
    for shape in SHAPES:
        steps = run_trl(shape, [*WORDS, f"steps={TRIAL_WARMUP + TRIAL_STEPS}"], TRIAL_S)
        rates[shape] = figures_of(steps[TRIAL_WARMUP:]).samples_per_s
        print(f"TRL, {shape}: {rates[shape]:.1f} samples/s", flush=True)
    return rates


def stage_rows(own: PeerFigures, trl: PeerFigures) -> list[tuple[str, float | None, float | None]]:
    """Seconds of a step by stage: title, this project's, TRL's. A dash marks a stage that overlaps or is part of
    another."""
    own_s, trl_s = own.stages, trl.stages
    rest = own.step_s - own_s["wait_for_rollouts"] - own_s["learn"] - own_s["publish_weights"]
    learning = ("student", "loss", "backward")
    return [
        ("rollouts: sampled, rewarded, scored", own_s["wait_for_rollouts"], None),
        ("– sampling", own_s["sample"], trl_s["sample"]),
        ("– rewards, teacher's prompts", None, trl_s["reward"]),
        ("– support: student forward without gradient", own_s["support"], None),
        ("– teacher forward", own_s["score"], trl_s["teacher"]),
        ("learning", own_s["learn"], sum(trl_s[name] for name in learning)),
        *((f"– {name}", None, trl_s[name]) for name in learning),
        ("publishing weights, EMA", own_s["publish_weights"], None),
        ("rest", rest, trl_s["rest"]),
        ("step", own.step_s, trl.step_s),
    ]


def report(result: dict[str, Any], own: PeerFigures, trl: PeerFigures, config: Config) -> list[str]:
    """Lines of the page."""

    def cell(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds:.3f}"

    def side(name: str, figures: PeerFigures) -> str:
        return (
            f"| {name} | {figures.samples_per_s:.1f} | "
            f"{figures.step_s:.2f} ({figures.fastest_s:.2f} to {figures.slowest_s:.2f}) | "
            f"{figures.tokens_per_sample:.1f} | {figures.reward:.3f} |"
        )

    rollout = config.rollout
    return [
        "# A run beside TRL's SDPO",
        "",
        f"`method=sdpo` on MiniSci: {rollout.prompts_per_step} prompts x {rollout.group_size} responses a step, of at "
        f"most {rollout.max_response_tokens} tokens; float32, two CPU cores, one run after the other; "
        f"{result['steps']} steps after {result['warmup']} for warm-up. Same model, prompts in the same order, "
        f"optimizer and reward; EMA teacher, reverse KL on the student's top {config.sdpo.top_k} and tail.",
        "",
        "| | samples/s | step, s (fastest to slowest) | response tokens a sample | reward |",
        "|---|---|---|---|---|",
        side("this project", own),
        side(f"{result['requirement']}: {result['shape']}", trl),
        "",
        f"**Ratio: {result['ratio']:.2f}**.",
        "",
        "Where a step's time goes, seconds. Here scoring overlaps sampling, which ends with the last response; TRL's "
        "stages follow one another. TRL's optimizer and EMA are in `rest`.",
        "",
        "| stage | this project | TRL |",
        "|---|---|---|",
        *(f"| {name} | {cell(own_s)} | {cell(trl_s)} |" for name, own_s, trl_s in stage_rows(own, trl)),
        "",
        f"How TRL was set: the fastest of these, tried for {TRIAL_STEPS} steps each.",
        "",
        "| processes, threads, micro-batch | samples/s |",
        "|---|---|",
        *(f"| {shape} | {speed:.1f} |" for shape, speed in result["tried"].items()),
    ]


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps that count")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    words = [*WORDS, f"steps={args.warmup + args.steps}"]
    config = load(DEMO, words)
    with fenced():
        rates = try_shapes()
        shape = max(rates, key=rates.__getitem__)
        load_before = os.getloadavg()[0]
        trl_steps = run_trl(shape, words, RUN_S)
        own_steps = run_own(words)
    own, trl = figures_of(own_steps[args.warmup :]), figures_of(trl_steps[args.warmup :])
    result = {
        "ratio": own.samples_per_s / trl.samples_per_s,
        "requirement": REQUIREMENTS.read_text().strip(),
        "shape": str(shape),
        "steps": args.steps,
        "warmup": args.warmup,
        "load_before": load_before,
        "ours": asdict(own),
        "trl": asdict(trl),
        "tried": {str(shape): rate for shape, rate in rates.items()},
        "steps_ours": [asdict(step) for step in own_steps],
        "steps_trl": [asdict(step) for step in trl_steps],
        **provenance(config),
    }
    save(args.out, "peer-cpu", result, report(result, own, trl, config))
