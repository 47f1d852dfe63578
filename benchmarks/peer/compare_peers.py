"""A run of this project beside TRL's SDPO: `python -m benchmarks.peer [config [key=value ...]]`

    python -m benchmarks.peer
    python -m benchmarks.peer --steps 3 --warmup 1 configs/smollm2.yaml model.precision=float32

The same model, prompts, group size, response length, loss, precision and optimizer settings on the same two cores, one
after the other: samples/s and tokens/s end to end over the steps after warm-up, and the time of a step by stage. TRL is
installed in an environment of its own (`.peers`), which sees this one's torch and transformers. Short runs first find
the numbers of processes and of samples a forward that are fastest for TRL (`--tried` steps each, after a warm-up); it
then runs with these.
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
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.models.whole_model import parameters_in_files
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
"""Overrides of the config. Divergence and aggregation are those of TRL."""
TRIED_STEPS = 4
LIMIT_S = 3600  # of one run of TRL


@dataclass(frozen=True)
class WorkShape:
    """Split of TRL's work: data-parallel processes, each with its share of the threads, and samples a forward."""

    processes: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.processes} x {CORES // self.processes} threads, {self.micro_batch} samples a forward"


def shapes_of(config: Config) -> list[WorkShape]:
    """Shapes to try: one process with all samples in one forward or in four, two with theirs in one to four."""
    samples = config.rollout.prompts_per_step * config.rollout.group_size
    cuts = [(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (2, 4)]
    return [WorkShape(n, samples // (n * forwards)) for n, forwards in cuts if samples % (n * forwards) == 0]


def shape_of(text: str) -> WorkShape:
    """The shape that the command line names as processes x samples a forward: `2x16`.

    Raises:
        argparse.ArgumentTypeError: the text is not of that form.
    """
    processes, _, micro_batch = text.partition("x")
    if not (processes.isdigit() and micro_batch.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 2x16; a config stands before --shapes")
    return WorkShape(int(processes), int(micro_batch))


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

    @property
    def tokens_per_s(self) -> float:
        """Response tokens a second."""
        return self.samples_per_s * self.tokens_per_sample


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


def run_own(config: Config) -> list[PeerStep]:
    """Steps of this project's run."""
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


def run_trl(shape: WorkShape, file: Path, words: Sequence[str]) -> list[PeerStep]:
    """Steps of TRL's run.

    Raises:
        RuntimeError: TRL failed; the message ends with its last output.
        subprocess.TimeoutExpired: it took longer than an hour.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={shape.processes}"]
    command = [
        str(trl_python()),
        *(launcher if shape.processes > 1 else []),
        *["-m", "benchmarks.peer.trl_sdpo", f"--micro-batch={shape.micro_batch}", str(file), *words],
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(CORES // shape.processes),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"TRL ({shape}) ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return [PeerStep(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def try_shapes(shapes: Sequence[WorkShape], file: Path, words: Sequence[str], tried: int) -> dict[WorkShape, float]:
    """Samples/s of TRL's shapes in runs of `tried` steps after one or two for warm-up; 0 for a shape that fails."""
    rates: dict[WorkShape, float] = {}
    warmup = min(2, tried)
    for shape in shapes:
        try:
            steps = run_trl(shape, file, [*words, f"steps={warmup + tried}"])
            rates[shape] = figures_of(steps[warmup:]).samples_per_s
            print(f"TRL, {shape}: {rates[shape]:.2f} samples/s", flush=True)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            rates[shape] = 0.0
            print(f"TRL, {shape}: failed: {error}", flush=True)
    if not any(rates.values()):
        raise SystemExit("No shape of TRL ran; the reasons are above.")
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
            f"| {name} | {figures.samples_per_s:.{digits}f} | {figures.tokens_per_s:.0f} | "
            f"{figures.step_s:.2f} ({figures.fastest_s:.2f} to {figures.slowest_s:.2f}) | "
            f"{figures.tokens_per_sample:.1f} | {figures.reward:.3f} |"
        )

    rollout = config.rollout
    digits = 1 if own.samples_per_s > 20 else 2
    return [
        "# A run beside TRL's SDPO",
        "",
        f"`{result['command']}`: `method=sdpo`, {result['parameters'] / 1e6:.2f}M parameters in "
        f"{config.model.precision.value}, {rollout.prompts_per_step} prompts x {rollout.group_size} responses a step, "
        f"of at most {rollout.max_response_tokens} tokens; two CPU cores, one run after the other; {result['steps']} "
        f"steps after {result['warmup']} for warm-up. Same model, prompts in the same order, "
        f"optimizer and reward; EMA teacher, reverse KL on the student's top {config.sdpo.top_k} and tail.",
        "",
        "| | samples/s | response tokens/s | step, s (fastest to slowest) | response tokens a sample | reward |",
        "|---|---|---|---|---|---|",
        side("this project", own),
        side(f"{result['requirement']}: {result['shape']}", trl),
        "",
        f"**Ratio: {result['ratio']:.2f}** in samples/s, {result['tokens_ratio']:.2f} in response tokens/s.",
        "",
        "Where a step's time goes, seconds. Here scoring overlaps sampling, which ends with the last response; TRL's "
        "stages follow one another. TRL's optimizer and EMA are in `rest`.",
        "",
        "| stage | this project | TRL |",
        "|---|---|---|",
        *(f"| {name} | {cell(own_s)} | {cell(trl_s)} |" for name, own_s, trl_s in stage_rows(own, trl)),
        "",
        f"How TRL was set: the fastest of these, tried for {result['tried_steps']} steps each.",
        "",
        "| processes, threads, micro-batch | samples/s |",
        "|---|---|",
        *(f"| {shape} | {f'{speed:.{digits}f}' if speed else 'failed'} |" for shape, speed in result["tried"].items()),
    ]


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=DEMO, help="settings of both runs; default: the demo's")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=20, help="steps that count")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--tried", type=int, default=TRIED_STEPS, help="steps that count in the trial of a shape")
    parser.add_argument("--shapes", type=shape_of, nargs="+", metavar="NxM", help="TRL's processes x samples a forward")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_intermixed_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    file = args.config.resolve()
    settings = [*WORDS, *args.overrides]
    words = [*settings, f"steps={args.warmup + args.steps}"]
    config = load(file, words)
    folder = model_folder(config)
    config, _ = resolve_precision(config, folder)
    with fenced():
        rates = try_shapes(args.shapes or shapes_of(config), file, settings, args.tried)
        shape = max(rates, key=rates.__getitem__)
        load_before = os.getloadavg()[0]
        trl_steps = run_trl(shape, file, words)
        own_steps = run_own(config)
    own, trl = figures_of(own_steps[args.warmup :]), figures_of(trl_steps[args.warmup :])
    result = {
        "command": " ".join(["python -m benchmarks.peer", *sys.argv[1:]]),
        "ratio": own.samples_per_s / trl.samples_per_s,
        "tokens_ratio": own.tokens_per_s / trl.tokens_per_s,
        "parameters": parameters_in_files(folder),
        "requirement": REQUIREMENTS.read_text().strip(),
        "shape": str(shape),
        "steps": args.steps,
        "warmup": args.warmup,
        "tried_steps": args.tried,
        "load_before": load_before,
        "ours": asdict(own),
        "trl": asdict(trl),
        "tried": {str(shape): rate for shape, rate in rates.items()},
        "steps_ours": [asdict(step) for step in own_steps],
        "steps_trl": [asdict(step) for step in trl_steps],
        **provenance(config),
    }
    name = "peer-cpu" if file == DEMO else f"peer-{config.name}-cpu"
    save(args.out, name, result, report(result, own, trl, config))
