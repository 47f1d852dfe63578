"""What recording costs: `python -m benchmarks.recording [--pairs 60]`

The demo's settings on real engines. Responses are recorded with all that is known of their tokens at every second step
alone, so that each step with it has one without beside it, and what slows both does not count. Ledger and figures are
written at all steps; their seconds are told by the driver itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.intervals import paired_ratio
from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.timed_runs import train_on_real_engines
from demopsd_dist.config import load
from launch._processes import fenced
from workers.cluster import session

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
WARM_UP = 4
WORDS = [
    "samples.every_steps=2",  # at step 1 and then at 3, 5 and so on
    "learner.learning_rate=1e-9",
    "evaluation.at_start=false",
    "leakage.every_steps=0",
    "checkpoint.every_steps=0",
]
STAGES = ("learn", "samples")


def measured(pairs: int) -> list[dict[str, float]]:
    config = load(DEMO, [*WORDS, f"steps={WARM_UP + 2 * pairs}"])
    with fenced():
        session.join(config)
        return train_on_real_engines(config).steps[WARM_UP:]


def compared(steps: list[dict[str, float]]) -> dict[str, Any]:
    """Steps in turn: with, without."""
    recorded, plain = steps[::2], steps[1::2]
    assert all("time/samples_s" in step for step in recorded)
    assert not any("time/samples_s" in step for step in plain)

    def seconds(step: dict[str, float], *stages: str) -> float:
        return sum(step.get(f"time/{stage}_s", 0.0) for stage in stages)

    whole = [[step["perf/step_s"] for step in side] for side in (recorded, plain)]
    ratio = paired_ratio(*whole)
    stages = [fmean(seconds(step, *STAGES) for step in side) for side in (recorded, plain)]
    return {
        "pairs": len(plain),
        "step_s": fmean(whole[1]),
        "ratio": ratio.value,
        "interval": [ratio.low, ratio.high],
        "learn_and_samples_s": stages,
        "by_stages": (stages[0] - stages[1]) / fmean(whole[1]),
        "samples_s": fmean(seconds(step, "samples") for step in recorded),
    }


def report(found: dict[str, Any]) -> list[str]:
    (low, high), (recorded_s, plain_s) = found["interval"], found["learn_and_samples_s"]
    return [
        "# What recording costs",
        "",
        f"The demo on two CPU cores, real engines, {found['pairs']} pairs of steps in one run: every second records "
        "responses with their tokens (`samples`), as each step does by default.",
        "",
        f"A step with it takes **{found['ratio']:.3f} times** one without (95 % interval {low:.3f} to {high:.3f}); one "
        f"without takes {found['step_s']:.2f} s.",
        "",
        f"By stages: learning and writing together take {recorded_s:.3f} s with and {plain_s:.3f} s without, "
        f"{found['by_stages']:+.1%} of a step; {found['samples_s'] * 1000:.0f} ms of it is the driver's writing.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = compared(measured(args.pairs))
    save(args.out, "recording-cpu", found, report(found))


if __name__ == "__main__":
    main()
