"""Cost of recording responses: `python -m benchmarks.recording [--pairs 60]`

The demo's settings on real engines. Responses are recorded with the values of their tokens at every second step only,
so that each step with recording has one without beside it, and a slowdown of both cancels out. Ledger and metrics are
written at all steps; the driver times them itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.intervals import paired_ratio
from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.timed_runs import DEMO, train_on_real_engines
from demopsd_dist.config import load
from demopsd_dist.run_record.log import Metrics
from launch._processes import fenced
from workers.cluster import session

WARM_UP = 4
WORDS = [
    "samples.every_steps=2",  # at step 1 and then at 3, 5 and so on
    "learner.learning_rate=1e-9",
    "evaluation.at_start=false",
    "leakage.every_steps=0",
    "checkpoint.every_steps=0",
]
STAGES = ("learn", "samples")


def measure(pairs: int) -> list[Metrics]:
    """Metrics of the steps after warm-up, in turn with and without recording."""
    config = load(DEMO, [*WORDS, f"steps={WARM_UP + 2 * pairs}"])
    with fenced():
        session.join(config)
        return train_on_real_engines(config).steps[WARM_UP:]


def compare_pairs(steps: list[Metrics]) -> dict[str, Any]:
    """Ratio and stage times of steps with recording to those without, which take turns."""
    recorded, plain = steps[::2], steps[1::2]
    assert all("time/samples_s" in step for step in recorded)
    assert not any("time/samples_s" in step for step in plain)

    def seconds(step: Metrics, *stages: str) -> float:
        return sum(step.get(f"time/{stage}_s", 0.0) for stage in stages)

    step_s = [[step["perf/step_s"] for step in side] for side in (recorded, plain)]
    ratio = paired_ratio(*step_s)
    stages = [fmean(seconds(step, *STAGES) for step in side) for side in (recorded, plain)]
    return {
        "pairs": len(plain),
        "step_s": fmean(step_s[1]),
        "ratio": ratio.value,
        "interval": [ratio.low, ratio.high],
        "learn_and_samples_s": stages,
        "by_stages": (stages[0] - stages[1]) / fmean(step_s[1]),
        "samples_s": fmean(seconds(step, "samples") for step in recorded),
    }


def report(result: dict[str, Any]) -> list[str]:
    """Lines of the page."""
    (low, high), (recorded_s, plain_s) = result["interval"], result["learn_and_samples_s"]
    return [
        "# What recording costs",
        "",
        f"The demo on two CPU cores, real engines, {result['pairs']} pairs of steps in one run: every second records "
        "responses with their tokens (`samples`), as each step does by default.",
        "",
        f"A step with it takes **{result['ratio']:.3f} times** one without (95 % interval {low:.3f} to {high:.3f}); "
        f"one without takes {result['step_s']:.2f} s.",
        "",
        f"By stages: learning and writing together take {recorded_s:.3f} s with and {plain_s:.3f} s without, "
        f"{result['by_stages']:+.1%} of a step; {result['samples_s'] * 1000:.0f} ms of it is the driver's writing.",
    ]


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = compare_pairs(measure(args.pairs))
    save(args.out, "recording-cpu", result, report(result))


if __name__ == "__main__":
    main()
