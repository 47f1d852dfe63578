"""Memory and time of the loss: `python -m benchmarks.objective [--tokens 256 1024] [--hidden 1024] [--tasks demopsd]`

One forward and backward, from hidden states to the gradients of hidden states and head, float32 on CPU or bfloat16
weights on a GPU, for every form of every task (`loss_forms.py`). Each measurement has a process of its own, so that the
memory of one does not count for another; forms take turns. TRL's and Liger's losses run with them if these packages are
installed. Writes a table, a plot and the raw figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.objective.loss_forms import FORMS, HEAD_PRODUCTS, TOP_K, Form, LossCase

VOCABULARY = 151_936
RESULTS = Path(__file__).parents[1] / "results"
MIB = 2**20
Row = dict[str, Any]


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024])
    parser.add_argument("--tasks", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--repeats", type=int, default=2, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each form, in turn")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep the rows of other sizes and tasks in the results")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    raw = args.out / f"objective-{device}.json"
    rows: list[Row] = json.loads(raw.read_text()) if args.add and raw.exists() else []
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        for hidden in args.hidden:
            for tokens in args.tokens:
                size = {"task": task, "tokens": tokens, "hidden": hidden, "vocabulary": args.vocabulary}
                rows = [row for row in rows if not size.items() <= row.items()]
                fresh = compare(size, device, args.repeats, args.rounds)
                rows += fresh
                rows.sort(key=lambda row: (list(FORMS).index(row["task"]), row["hidden"], row["tokens"]))
                raw.write_text(json.dumps(rows, indent=2) + "\n")
                (args.out / f"objective-{device}.md").write_text(report(rows, device))
                print(*map(table_line, fresh), sep="\n", flush=True)
    plot(rows, args.out / f"objective-{device}.png", device)


def compare(size: Row, device: str, repeats: int, rounds: int) -> list[Row]:
    """A row for each form of a task; medians over the rounds, and ratios to the first form."""
    task, forms = size["task"], list(FORMS[size["task"]])
    measured: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            measured[form].append(in_new_process(measure, task, form, size, device, repeats))
    rows = [
        size | {"form": form} | {key: statistics.median(result[key] for result in results) for key in results[0]}
        for form, results in measured.items()
    ]
    differences = in_new_process(gradient_differences, task, size, device)
    for row in rows:
        row |= {
            "memory_ratio": row["beyond_gradients_mib"] / rows[0]["beyond_gradients_mib"],
            "time_ratio": row["seconds"] / rows[0]["seconds"],
            "gradient_difference": differences[row["form"]],
        }
    return rows


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure(task: str, form: str, size: Row, device: str, repeats: int) -> dict[str, float]:
    """Memory of the first step, median time of the later steps, and the time of the products with the head alone."""
    loss_form = FORMS[task][form]
    step(
        make_case(size | {"tokens": 2, "hidden": 8, "vocabulary": 2 * TOP_K}, device), loss_form
    )  # imports, thread pools
    case = make_case(size, device)
    _ = case.sent
    peak = peak_mib(lambda: step(case, loss_form), device)
    gradients_mib = (case.weight_VH.nbytes + case.hidden_NH.nbytes) / MIB
    return {
        "beyond_gradients_mib": peak - gradients_mib,
        "seconds": statistics.median(timed(lambda: step(case, loss_form), device) for _ in range(repeats)),
        "floor_s": HEAD_PRODUCTS[task] * timed(lambda: products(case), device),
    }


def make_case(size: Row, device: str) -> LossCase:
    """Random inputs of a size."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return LossCase(size["tokens"], size["hidden"], size["vocabulary"], device, dtype)


def step(case: LossCase, form: Form) -> float:
    """One forward and backward pass; returns the loss."""
    case.hidden_NH.grad = case.weight_VH.grad = None
    loss = form(case)
    loss.backward()
    return loss.item()


def products(case: LossCase) -> None:
    """One product of the hidden states with the head, in slices: a lower bound of the time of any form."""
    with torch.no_grad():
        for rows in case.hidden_NH.split(case.slice_tokens):
            torch.nn.functional.linear(rows, case.weight_VH)


def gradient_differences(task: str, size: Row, device: str) -> dict[str, float]:
    """Largest difference from the first form's gradients, relative to their largest entry."""
    case = make_case(size, device)
    differences: dict[str, float] = {}
    first: list[torch.Tensor] = []
    for form in FORMS[task]:
        step(case, FORMS[task][form])
        gradients = [x.grad for x in (case.hidden_NH, case.weight_VH) if x.grad is not None]
        first = first or gradients
        differences[form] = max(
            float((one - other).abs().max() / other.abs().max()) for one, other in zip(gradients, first, strict=True)
        )
    return differences


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mib(work: Callable[[], Any], device: str) -> float:
    """Peak memory of a call beyond the memory in use before it, MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from the present size
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def report(rows: list[Row], device: str) -> str:
    """The page."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device == "cuda" else machine
    lines = [
        "# The loss: memory and time by form",
        "",
        f"`{device}` ({name}), torch {torch.__version__}, top-k {TOP_K}. One forward and backward. Memory is the peak "
        "beyond inputs and gradients; ratios are to the first form of a size; `floor` is the time of the products with "
        "the head that every form needs, measured in the same process; `gradients` the largest difference from "
        "the first form's, relative to the largest entry.",
        "",
        "| task | V | hidden | T | form | MiB | memory | s | time | floor s | gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(table_line, rows)]) + "\n"


def table_line(row: Row) -> str:
    """Line of a form in the table."""
    return (
        f"| {row['task']} | {row['vocabulary']} | {row['hidden']} | {row['tokens']} | {row['form']} | "
        f"{row['beyond_gradients_mib']:.0f} | {row['memory_ratio']:.3f} | {row['seconds']:.2f} | "
        f"{row['time_ratio']:.2f} | {row['floor_s']:.2f} | {row['gradient_difference']:.0e} |"
    )


def plot(rows: list[Row], path: Path, device: str) -> None:
    """Plot memory and time over T: a column for each task, a line for each form and hidden size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(2, len(tasks), figsize=(4.2 * len(tasks), 7), squeeze=False)
    for column, task in enumerate(tasks):
        for hidden in sorted({row["hidden"] for row in rows if row["task"] == task}):
            rows_of_size = [row for row in rows if (row["task"], row["hidden"]) == (task, hidden)]
            for form in dict.fromkeys(row["form"] for row in rows_of_size):
                own = [row for row in rows_of_size if row["form"] == form]
                for axis, key in zip(axes[:, column], ("beyond_gradients_mib", "seconds"), strict=True):
                    values = ([row["tokens"] for row in own], [row[key] for row in own])
                    axis.plot(*values, marker="o", label=f"{form}, hidden {hidden}")
        for axis, title, unit in zip(axes[:, column], ("memory", "time"), ("MiB", "s"), strict=True):
            axis.set(title=f"{task}: {title}", xlabel="response tokens", ylabel=unit, xscale="log", yscale="log")
            ticks = sorted({row["tokens"] for row in rows if row["task"] == task})
            axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.suptitle(f"One forward and backward of the loss on {device}: beyond inputs and gradients")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
