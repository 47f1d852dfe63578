"""A gate fitted to a step: two real ranks of gloo agree on the sensitivity that one would find for all tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demopsd_dist.objective import DemoPSD
from demopsd_dist.objective.barycenter import tanh_gate
from workers.learner.step_objective import disagreements

ROOT = Path(__file__).parents[4]
RANK = """
import sys
from datetime import timedelta
import torch
from torch import distributed
from demopsd_dist.objective import DemoPSD
from tests.unit.workers.learner.test_step_objective import METHOD, examples
from workers.learner.step_objective import fit_to_step

rank, where = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=60))
fitted = fit_to_step(METHOD, [examples(), []][rank], torch.device("cpu"))
plain = DemoPSD(gate="constant")
assert fit_to_step(plain, examples(), torch.device("cpu")) is plain
print(fitted.gate, fitted.gate_sensitivity)
"""
METHOD = DemoPSD(gate="fitted", mean_alpha=0.05)


def examples() -> list[Any]:
    """Scored examples of 40, 1 and 300 tokens, with what the gate reads of them."""
    random = torch.Generator().manual_seed(0)
    made = []
    for tokens in (40, 1, 300):
        logits = torch.randn(2, tokens, 9, generator=random)
        reference, teacher = logits[0].log_softmax(-1), (logits[0] + 0.3 * logits[1]).log_softmax(-1)
        made.append(SimpleNamespace(reference_logp_TA=reference.numpy(), teacher_logp_TA=teacher.numpy()))
    return made


def test_all_ranks_fit_the_same_gate_to_all_tokens(tmp_path: Path) -> None:
    """The second rank has no example."""
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), f"file://{tmp_path}/meeting"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said
    (gate, kappa), other = (out.split() for out, _ in said)
    assert [gate, kappa] == other
    assert gate == "tanh"
    d_N = torch.cat([disagreements(METHOD, one) for one in examples()])
    assert float(tanh_gate(d_N, METHOD.alpha_max, float(kappa)).mean()) == pytest.approx(0.05, rel=0.003), "of bins"
