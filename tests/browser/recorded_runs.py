"""Run folders with random metrics and samples in the format that a run records."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demopsd_dist.config import load
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
FIELDS = ("biology", "chemistry", "materials", "physics")
PIECES = ("The", " mass", " is", " 12", "*", "6", "=", "72", "\n", " g", ".", " so")
CANDIDATES = 5

HOSTILE = [
    "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">",
    "</script><!--<script>\u2028</textarea></style><svg onload=alert(1)>",
    "\x1b]0;taken\x07\x1b[31mred\x1b[2J\x9b31m",
    "admin\u202e\u2066gnp.exe\u2069 \u200f\u061c\ufeff\u00ad",
    "javascript:alert(1) &lt;b&gt; ${1+1} {{7*7}} %s \\u003cscript\\u003e",
    "\U000e0041\ue000\ufffe\u0000",
]
LONG_LINE = "x" * 1_000_000


def a_run(folder: Path, *, steps: int, responses: int, texts: Sequence[str] = (), words: Sequence[str] = ()) -> Path:
    """A run folder with `steps` steps and `responses` samples each; `texts` replace all texts of models and data."""
    config = load(DEMO, [f"output_dir={folder}", f"steps={steps}", f"samples.responses={responses}", *words])
    run = RunFolder.create(config)
    rng = np.random.default_rng(0)
    choose = random.Random(0)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "learner/loss": 1 / step, "perf/step_s": 4.0, "time/learn_s": 1.0} | _metrics(step))
        rows = [_row(step, i, rng, choose, texts) for i in range(responses)]
        samples.write(run.samples, step, rows)
    for step in (0, steps):
        for split in ("test", "ood"):
            by_field = dict.fromkeys(FIELDS, 0.3 + 0.4 * step / steps)
            accuracy = {"average": 0.3 + 0.4 * step / steps, "low": 0.28, "high": 0.74, "by_field": by_field}
            lines.append({"step": step, "evaluation": split, "mean": accuracy, "entropy_nats": 0.1, "samples": 8})
            samples.write_evaluation(run.evaluations, step, split, _evaluated(step, texts))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run.path


def _evaluated(step: int, texts: Sequence[str]) -> list[samples.Row]:
    """Six questions with four responses; after the training the first half is right more often, the last less."""
    rows = []
    for i in range(6):
        right = {True: [1, 0, 2], False: [3, 0, 1]}[step == 0][i % 3]
        rewards = [float(sample < right) for sample in range(4)]
        responses = [
            texts[sample % len(texts)][:500] if texts else f"{72 - (not r)}" for sample, r in enumerate(rewards)
        ]
        question = texts[0][:500] if texts else f"What is the mass of {i} mol?"
        row = {"step": step, "prompt_id": f"test/{i}", "field": FIELDS[i % 4], "question": question, "expected": "72"}
        rows.append(row | {"texts": responses, "answers": responses, "rewards": rewards})
    return rows


def _metrics(step: int) -> dict[str, float]:
    return {
        "rollout/reward_mean": 0.3 + 0.01 * step,
        "rollout/worker_0_tokens_per_s": 2000.0 + step,
        "rollout/worker_1_tokens_per_s": 2100.0 - step,
        "demopsd/alpha_mean": 0.03,
        "demopsd/disagreement_mean_nats": 0.02 / step,
        "policy/age_steps_max": 0.0,
        "mismatch/logp_diff_max": 1e-5,
    }


def _row(step: int, i: int, rng: np.random.Generator, choose: random.Random, texts: Sequence[str]) -> samples.Row:
    length = choose.randint(8, 40)
    short = [text[:100] for text in texts] or PIECES
    pieces = choose.choices(short, k=length)
    text_or = (lambda default: choose.choice(list(texts))) if texts else (lambda default: default)
    logp = {view: np.log(rng.dirichlet(np.ones(CANDIDATES + 1), length)[:, :-1]) for view in ("a", "b", "c", "d")}
    disagreement = rng.beta(0.2, 4, length) * 0.69
    return {
        "step": step,
        "prompt_id": text_or(f"train/{i % 50}"),
        "sample": i % 8,
        "field": text_or(FIELDS[i % 4]),
        "question": text_or(f"What is the mass of {i} mol in step {step}?"),
        "expected": text_or("72"),
        "student_view": text_or(f"<|user|>What is the mass of {i} mol?<|assistant|>"),
        "privileged_view": text_or(
            f"<|user|>What is the mass of {i} mol?\n\nCorrect solution:\n\n12*6=72<|assistant|>"
        ),
        "solution_source": ("sibling", "dataset")[i % 2],
        "response": text_or("".join(pieces)),
        "truncated": False,
        "reward": float(i % 3 == 0),
        "feedback": text_or(None),
        "learned": True,
        "advantage": 0.5,
        "worker": i % 2,
        "group_samples": list(range(8)),
        "group_rewards": [float(sample % 3 == 0) for sample in range(8)],
        "group_texts": [text_or(f"response {sample} to {i}") for sample in range(8)],
        "shown_samples": [3],
        "token_ids": list(range(length)),
        "token_texts": pieces,
        "versions": [step - 1] * length,
        "rollout_logp": (-rng.exponential(0.3, length)).tolist(),
        "entropy": rng.exponential(0.2, length).tolist(),
        "loss": rng.exponential(0.2, length).tolist(),
        "alpha": (0.15 * np.tanh(25 * disagreement)).tolist(),
        "disagreement": disagreement.tolist(),
        "candidate_ids": [list(range(CANDIDATES))] * length,
        "candidate_texts": [choose.choices(short, k=CANDIDATES) for _ in range(length)],
        "student_logp": logp["a"].tolist(),
        "reference_logp": logp["b"].tolist(),
        "teacher_logp": logp["c"].tolist(),
        "target_logp": logp["d"].tolist(),
    }
