"""Plain against fused DemoPSD loss: `python -m benchmarks.objective [--tokens 256 512 1024] [--hidden 1024]`

Peak memory beyond the inputs and time of one forward and backward, from hidden states to the gradients of hidden states
and head, float32 on CPU or bfloat16 weights on a GPU. Each form runs in a process of its own, turn about, so that one's
memory does not count for the other. Writes a table and the raw figures.
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
from torch import Tensor
from torch.nn.functional import linear

from demopsd_dist.objective import (
    Slice,
    coarsen,
    demopsd_loss_on_atoms,
    demopsd_loss_on_support,
    fused_loss,
    top_k_support,
)

VOCABULARY = 151_936
TOP_K = 100
RESULTS = Path(__file__).parent / "results"
MIB = 2**20


class Case:
    """Inputs of a size, and the two ways from them to gradients."""

    def __init__(self, tokens: int, hidden: int, vocabulary: int, device: str) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        random = torch.Generator(device=device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, device=device, dtype=torch.float32)

        self.hidden_NH = draw(tokens, hidden).to(dtype).requires_grad_()
        self.weight_VH = (draw(vocabulary, hidden) * 0.05).to(dtype).requires_grad_()
        with torch.no_grad():
            parts = []
            for start in range(0, tokens, 64):
                logits = linear(self.hidden_NH[start : start + 64], self.weight_VH).float()
                ids = top_k_support(logits, TOP_K)
                noisy = (logits + 0.3 * draw(*logits.shape), logits + 1.0 * draw(*logits.shape))
                parts.append((ids, *(coarsen(values, ids) for values in noisy)))
            ids, self.reference_NA, self.teacher_NA = (torch.cat(part) for part in zip(*parts, strict=True))
            self.support_NK: Tensor = ids
        self.tokens = tokens

    def plain(self) -> Tensor:
        logits_NV = linear(self.hidden_NH, self.weight_VH)
        mask = torch.ones(1, self.tokens, dtype=torch.bool, device=logits_NV.device)
        values = (self.support_NK[None], self.reference_NA[None], self.teacher_NA[None])
        return demopsd_loss_on_support(logits_NV[None], *values, mask).loss

    def fused(self) -> Tensor:
        def loss_of(part: Slice) -> Tensor:
            logp = part.student_logp_NA[None]
            mask = torch.ones(logp.shape[:2], dtype=torch.bool, device=logp.device)
            values = (self.reference_NA[part.tokens][None], self.teacher_NA[part.tokens][None])
            return demopsd_loss_on_atoms(logp, *values, mask, token_count=self.tokens).loss

        return fused_loss(self.hidden_NH, self.weight_VH, self.support_NK, loss_of)

    def step(self, form: Callable[[], Tensor]) -> float:
        self.hidden_NH.grad = self.weight_VH.grad = None
        loss = form()
        loss.backward()
        return loss.item()


def peak_mib(run: Callable[[], Any], device: str) -> float:
    """Memory that a call takes at its peak beyond what was held before, MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from the present size
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(form: str, tokens: int, hidden: int, vocabulary: int, device: str, repeats: int) -> dict[str, float]:
    """One case in this process: memory of the first step, median time of the others."""
    case = Case(tokens, hidden, vocabulary, device)
    chosen = getattr(case, form)
    losses: list[float] = []
    peak = peak_mib(lambda: losses.append(case.step(chosen)), device)
    gradient_mib = (case.weight_VH.nbytes + case.hidden_NH.nbytes) / MIB
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        losses.append(case.step(chosen))
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    norms = [float(x.grad.float().norm()) for x in (case.hidden_NH, case.weight_VH) if x.grad is not None]
    return {
        "peak_mib": peak,
        "beyond_gradients_mib": peak - gradient_mib,
        "seconds": statistics.median(times),
        "loss": losses[0],
        "hidden_grad_norm": norms[0],
        "weight_grad_norm": norms[1],
    }


def compare(tokens: int, hidden: int, vocabulary: int, device: str, repeats: int, rounds: int) -> dict[str, Any]:
    """Both forms, turn about, each time in a fresh process; medians over the rounds."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "fused": []}
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for form, results in found.items():
            with context.Pool(1) as pool:
                results.append(pool.apply(measure, (form, tokens, hidden, vocabulary, device, repeats)))
    row: dict[str, Any] = {"tokens": tokens, "hidden": hidden, "vocabulary": vocabulary}
    for form, results in found.items():
        row[form] = {key: statistics.median(result[key] for result in results) for key in results[0]}
    row["memory_ratio"] = row["fused"]["beyond_gradients_mib"] / row["plain"]["beyond_gradients_mib"]
    row["time_ratio"] = row["fused"]["seconds"] / row["plain"]["seconds"]
    row["loss_difference"] = abs(row["fused"]["loss"] - row["plain"]["loss"])
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| T | hidden | plain MiB | fused MiB | memory | plain s | fused s | time | loss difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plain, fused = row["plain"], row["fused"]
        lines.append(
            f"| {row['tokens']} | {row['hidden']} | {plain['beyond_gradients_mib']:.0f} | "
            f"{fused['beyond_gradients_mib']:.0f} | {row['memory_ratio']:.3f} | {plain['seconds']:.2f} | "
            f"{fused['seconds']:.2f} | {row['time_ratio']:.2f} | {row['loss_difference']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024])
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--repeats", type=int, default=2, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each form, turn about")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for hidden in args.hidden:
        for tokens in args.tokens:
            rows.append(compare(tokens, hidden, args.vocabulary, device, args.repeats, args.rounds))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    text = (
        f"# Objective: plain against fused\n\n`{device}` ({name}), torch {torch.__version__}, V = {args.vocabulary}, "
        f"top-k {TOP_K}. One forward and backward; memory is the peak beyond inputs and gradients.\n\n{table(rows)}\n"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"objective-{device}.md").write_text(text)
    (args.out / f"objective-{device}.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
