"""Losses against float64: `python -m benchmarks.objective.random_draws [--draws 20000] [--seed 0]`

Seeded draws, random and adversarial, go through the fused loss in float32 and through `exact_losses.py` in float64,
from the same logits: every method and divergence, supports of any size and the whole vocabulary, temperatures, logit
transforms, importance ratios, and three ranges of the logits after the transform. Counted are values that are not
finite, and divergences below 0; the gradient's error is the largest absolute difference of a draw over the largest
entry of its gradient, or over 1 if that is smaller. Writes a table and the raw figures.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.results_files import RESULTS, save
from benchmarks.objective.exact_losses import ExactCase, token_losses
from demopsd_dist.objective import (
    GRPO,
    OPSD,
    SDPO,
    DemoPSD,
    LogitTransform,
    Objective,
    OutputHead,
    TokenSlice,
    TokenViews,
    coarsen,
    fused_loss,
    reduced,
)

NEG_INF = float("-inf")
METHODS: dict[str, Objective] = {
    "demopsd": DemoPSD(),
    "demopsd, alpha_max 1": DemoPSD(alpha_max=1.0),
    "demopsd, threshold": DemoPSD(gate="threshold"),
    "demopsd, constant": DemoPSD(gate="constant"),
    "demopsd, floor 1e-30": DemoPSD(floor=1e-30),
    "sdpo, jsd": SDPO("jsd"),
    "sdpo, forward_kl": SDPO("forward_kl"),
    "sdpo, reverse_kl": SDPO("reverse_kl"),
    "opsd, beta 0.5": OPSD(0.5),
    "opsd, beta 0.1": OPSD(0.1),
    "opsd, beta 0, clip": OPSD(0.0, term_clip=0.05),
    "opsd, beta 0.5, clip": OPSD(0.5, term_clip=0.05),
    "opsd, beta 1, clip": OPSD(1.0, term_clip=0.05),
    "grpo, learner": GRPO(),
    "grpo, learner, KL": GRPO(clip_high=0.28, kl_coefficient=0.04),
    "grpo, engine, KL": GRPO(kl_coefficient=0.04, clipped_ratio="engine"),
}
SIGNED = {name for name in METHODS if name.startswith("grpo") or name in ("opsd, beta 0, clip", "opsd, beta 1, clip")}
"""Losses that may be negative."""
RANGES = {"within 64": 64.0, "within 1e4": 1e4, "within 64 or -inf": 64.0}
TRANSFORMS = (
    *[LogitTransform()] * 4,
    LogitTransform(0.25),
    LogitTransform(8.0),
    LogitTransform(soft_cap=30.0),
    LogitTransform(2.0, 50.0),
)


@dataclass(frozen=True)
class LossDraw:
    """One input, in float32."""

    method: str
    range: str
    head_NV: Tensor  # student logits before the transform
    bias_V: Tensor | None
    transform: LogitTransform
    case: ExactCase  # float32; the student's logits after the transform


@dataclass(frozen=True)
class DrawResult:
    """Figures of one draw."""

    finite: bool
    least: float  # of the tokens' losses
    loss_error: float
    gradient_error: float


def shaped_logits(choose: random.Random, generator: torch.Generator, size: tuple[int, int], bound: float) -> Tensor:
    """Logits within a bound, of a shape chosen at random; most shapes are adversarial."""
    normal_NV = torch.randn(size, generator=generator)
    shape = choose.choice(["normal", "wide", "peak", "two peaks", "equal", "levels", "offset", "pit", "whole"])
    if shape == "peak":
        normal_NV[:, choose.randrange(size[1])] += choose.choice([20.0, 80.0, bound])
    elif shape == "two peaks":
        normal_NV[:, :2] += choose.choice([40.0, 200.0])
    elif shape == "equal":
        normal_NV = torch.full(size, choose.uniform(-bound, bound))
    elif shape == "levels":
        normal_NV = torch.randint(0, 3, size, generator=generator) * choose.choice([1.0, 30.0, bound])
    elif shape == "offset":
        normal_NV += choose.choice([-bound, bound])
    elif shape == "pit":
        normal_NV[:, choose.randrange(size[1])] -= choose.choice([100.0, bound])
    elif shape == "whole":
        normal_NV = (3 * normal_NV).round()
    else:
        normal_NV *= choose.choice([0.01, 1.0, 5.0] if shape == "normal" else [20.0, bound / 4])
    return normal_NV.clamp(-bound, bound)


def with_zeros(choose: random.Random, generator: torch.Generator, logits_NV: Tensor) -> Tensor:
    """Logits with -inf at some ids of each row, never at all of them."""
    fraction = choose.choice([0.1, 0.5, 0.95])
    mask_NV = torch.rand(logits_NV.shape, generator=generator) < fraction
    mask_NV[:, choose.randrange(logits_NV.shape[1])] = False
    return logits_NV.masked_fill(mask_NV, NEG_INF)


def other_model_logits(choose: random.Random, generator: torch.Generator, student_NV: Tensor, bound: float) -> Tensor:
    """Logits of another model: unrelated, close to the student's, equal to them, or reversed."""
    kind = choose.choice(["other", "other", "close", "equal", "reversed"])
    if kind == "other":
        return shaped_logits(choose, generator, (student_NV.shape[0], student_NV.shape[1]), bound)
    if kind == "equal":
        return student_NV.clone()
    if kind == "reversed":
        return student_NV.flip(-1)
    noise_NV = torch.randn(student_NV.shape, generator=generator) * choose.choice([1e-6, 1e-3, 0.1])
    return (student_NV + noise_NV).clamp(-bound, bound)


def drawn(method: str, span: str, seed: int) -> LossDraw:
    """Input for a method, from a seed."""
    choose, generator = random.Random(f"{method} {span} {seed}"), torch.Generator().manual_seed(seed)
    bound, zeros = RANGES[span], span == "within 64 or -inf"
    size = (choose.randint(1, 4), choose.randint(3, 40))
    transform = choose.choice(TRANSFORMS)
    head_NV = shaped_logits(choose, generator, size, bound / transform.scale)
    bias_V = with_zeros(choose, generator, torch.zeros(1, size[1]))[0] if zeros and choose.random() < 0.7 else None
    student_NV = transform.apply(head_NV + (0.0 if bias_V is None else bias_V))
    others = [other_model_logits(choose, generator, student_NV.clamp(-bound, bound), bound) for _ in range(2)]
    if zeros:
        others = [with_zeros(choose, generator, z_NV) if choose.random() < 0.6 else z_NV for z_NV in others]
    sizes = [1] if method.startswith("grpo") else [None, 1, size[1] - 1, choose.randint(1, size[1] - 1)]
    top_k = choose.choice(sizes)
    ids_NV = student_NV.argsort(-1, descending=True)
    if top_k is not None and choose.random() < 0.3:  # another model's support, or a token that is unlikely now
        ids_NV = torch.rand(size, generator=generator).argsort(-1)
    case = ExactCase(
        student_NV,
        teacher_NV=others[0],
        reference_NV=None if choose.random() < 0.1 and not method.startswith("grpo") else others[1],
        support_NK=None if top_k is None else ids_NV[:, :top_k],
        temperature=choose.choice([1.0, 1.0, 0.7, 1.3]),
        ratio_N=(torch.randn(size[0], generator=generator) * choose.choice([0.0, 0.1, 2.0])).exp(),
        learner_ratio_N=(torch.randn(size[0], generator=generator) * choose.choice([0.0, 0.3])).exp(),
        advantage_N=torch.randn(size[0], generator=generator),
    )
    return LossDraw(method, span, head_NV, bias_V, transform, case)


def fused_values(draw: LossDraw) -> tuple[Tensor, Tensor, bool]:
    """Loss of each token (N,), gradient (N, V) with respect to the logits before the transform, and whether all metrics
    are finite; by the fused loss in float32. Hidden states are unit vectors, so the head's weight, transposed, is those
    logits."""
    case, size = draw.case, len(draw.head_NV)
    weight_VN = draw.head_NV.T.clone().requires_grad_()
    sent = [
        None if z_NV is None else coarsen(z_NV, case.support_NK, case.temperature)
        for z_NV in (case.reference_NV, case.teacher_NV)
    ]
    losses: list[Tensor] = []
    finite: list[bool] = []

    def loss_of(part: TokenSlice) -> Tensor:
        reference, teacher = (None if logp_NA is None else logp_NA[part.tokens] for logp_NA in sent)
        views = TokenViews(
            part.student_logp_NA,
            reference,
            teacher,
            case.ratio_N[part.tokens],
            case.advantage_N[part.tokens],
            has_tail=case.support_NK is not None,
            learner_ratio_BT=case.learner_ratio_N[part.tokens],
        )
        result = reduced(METHODS[draw.method], views, token_count=1)
        losses.append(result.loss_BT.detach())
        finite.extend(bool(value.isfinite()) for value in result.metrics.values())
        finite.append(bool(part.entropy_N.isfinite().all()))
        return result.loss

    head = OutputHead(weight_VN, draw.bias_V, draw.transform)
    loss = fused_loss(torch.eye(size), head, case.support_NK, loss_of, temperature=case.temperature)
    (gradient_VN,) = torch.autograd.grad(loss, weight_VN)
    return torch.cat(losses), gradient_VN.T, all(finite)


def exact_values(draw: LossDraw) -> tuple[Tensor, Tensor]:
    """The same in float64, without metrics; a token of probability 0 has no gradient."""
    wide: dict[str, Any] = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in vars(draw.case).items()
    }
    student_NV = wide.pop("student_NV")
    leaf_NV = student_NV.clone().requires_grad_()
    losses_N = token_losses(METHODS[draw.method], ExactCase(leaf_NV, **wide))
    (gradient_NV,) = torch.autograd.grad(losses_N.sum(), leaf_NV)
    gradient_NV = gradient_NV.masked_fill(student_NV == NEG_INF, 0.0)
    cap = draw.transform.soft_cap
    slope = draw.transform.scale * (1.0 if cap is None else 1.0 - (student_NV / cap) ** 2)
    return losses_N.detach(), gradient_NV * slope


def compared(draw: LossDraw) -> DrawResult:
    """Figures of one draw."""
    losses_N, gradient_NV, finite = fused_values(draw)
    exact_N, exact_NV = exact_values(draw)
    assert bool(exact_N.isfinite().all()), draw
    assert bool(exact_NV.isfinite().all()), draw
    return DrawResult(
        finite=finite and bool(losses_N.isfinite().all()) and bool(gradient_NV.isfinite().all()),
        least=float(losses_N.min()),
        loss_error=float((losses_N - exact_N).abs().max() / exact_N.abs().max().clamp(min=1.0)),
        gradient_error=float((gradient_NV - exact_NV).abs().max() / exact_NV.abs().max().clamp(min=1.0)),
    )


def run(draws: int, seed: int) -> list[dict[str, Any]]:
    """Row of figures for each method and range; the draws are shared out evenly."""
    cells = [(method, span) for method in METHODS for span in RANGES]
    results: dict[tuple[str, str], list[DrawResult]] = defaultdict(list)
    for i in range(draws):
        method, span = cells[i % len(cells)]
        results[method, span].append(compared(drawn(method, span, seed + i)))
    return [
        {
            "method": method,
            "range": span,
            "draws": len(found),
            "not_finite": sum(not result.finite for result in found),
            "negative": 0 if method in SIGNED else sum(result.least < 0 for result in found),
            "loss_error": max(result.loss_error for result in found),
            "gradient_error": max(result.gradient_error for result in found),
        }
        for (method, span), found in results.items()
    ]


def report(rows: Sequence[dict[str, Any]], seed: int) -> list[str]:
    """Lines of the page."""
    total = sum(row["draws"] for row in rows)
    counts = {key: sum(row[key] for row in rows) for key in ("not_finite", "negative")}
    lines = [
        "# Fused losses against float64",
        "",
        f"{total:,} draws with seed {seed}, random and adversarial, in float32 on the CPU, torch {torch.__version__} "
        "(`benchmarks/objective/random_draws.py`). An error is the largest difference of a draw over the largest exact "
        "value, or over 1 if that is smaller. The largest errors are at losses of thousands of nats, where a teacher "
        "gives the student's tokens next to no probability, or 0: the gradient is then a difference of log-ratios of "
        "that size in float32. `-`: the loss may be negative.",
        "",
        f"**{counts['not_finite']} draws with a loss, gradient, entropy or metric that is not finite; "
        f"{counts['negative']} with a divergence below 0.**",
        "",
        "| range of logits | draws | not finite | below 0 | worst loss error | worst gradient error |",
        "|---|---|---|---|---|---|",
    ]
    for span in RANGES:
        own = [row for row in rows if row["range"] == span]
        sums = [sum(row[key] for row in own) for key in ("draws", "not_finite", "negative")]
        worst = " | ".join(f"{max(row[key] for row in own):.1e}" for key in ("loss_error", "gradient_error"))
        lines.append(f"| {span} | {sums[0]:,} | {sums[1]} | {sums[2]} | {worst} |")
    spans = " | ".join(f"gradient, {span}" for span in RANGES)
    lines += ["", f"| loss | draws | not finite | below 0 | {spans} |", "|---" * (4 + len(RANGES)) + "|"]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        sums = [sum(row[key] for row in own) for key in ("draws", "not_finite", "negative")]
        below = "-" if method in SIGNED else sums[2]
        errors = " | ".join(f"{row['gradient_error']:.1e}" for row in own)
        lines.append(f"| {method} | {sums[0]:,} | {sums[1]} | {below} | {errors} |")
    return lines


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(args.draws, args.seed)
    save(args.out, "objective-draws", rows, report(rows, args.seed))


if __name__ == "__main__":
    main()
