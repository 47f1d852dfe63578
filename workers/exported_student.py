"""Check of an exported student at the end of a run: transformers and vLLM load the folder, and compute what the learner
computed.

Each gives the log-probabilities of the canary prompt (`workers/weights/canary.py`). A difference means that the folder
holds another model than the one that was trained; the checkpoints do not depend on the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demopsd_dist.config import Config, logp_bounds
from demopsd_dist.util.errors import one_line
from workers.actor_group import ActorGroup
from workers.learner.worker import LearnerWorker
from workers.rollout.dispatch import Pool
from workers.rollout.worker import RolloutWorker
from workers.weights.canary import LogpT, canary_tokens, logp_difference


@dataclass(frozen=True)
class ExportCheck:
    """Result of a check.

    Attributes:
        logp_diff_nats: for each program that has loaded the folder (transformers, vLLM), the largest difference of a
            canary token's log-probability from the learner's. A program that failed has no entry.
        problems: a line for each program that failed or differs.
    """

    logp_diff_nats: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


async def check_export(
    folder: Path, learners: ActorGroup[LearnerWorker], rollouts: Pool, config: Config, vocabulary_size: int
) -> ExportCheck:
    """Load the folder in the first learner's process by transformers, and in a rollout worker's engine by vLLM.

    Args:
        vocabulary_size: number of token ids of the model.
    """
    canary = canary_tokens(vocabulary_size, config.rollout.max_prompt_tokens)
    within_s, path = config.limits.call_s, folder.resolve()
    learner_T, *_ = await learners.each(
        lambda worker, _: worker(LearnerWorker.canary_logp, canary), within_s=within_s, what="the canary prompt"
    )
    loads: dict[str, Awaitable[LogpT]] = {
        "transformers": learners.one(
            0, lambda worker: worker(LearnerWorker.exported_canary_logp, path, canary), what=f"loading {folder}"
        )
    }
    if engines := rollouts.group.ranks:
        loads["vLLM"] = rollouts.group.one(
            engines[0], lambda worker: worker(RolloutWorker.load_folder, path, canary), what=f"loading {folder}"
        )
    allowed = logp_bounds(config).largest
    nats: dict[str, float] = {}
    problems: list[str] = []
    for name, load in loads.items():
        try:
            nats[name] = float(logp_difference(await asyncio.wait_for(load, within_s), learner_T).max())
        except TimeoutError:
            problems.append(f"{name} has not loaded it within limits.call_s={within_s:g} s")
            continue
        except Exception as error:
            problems.append(one_line(f"{name} cannot load it: {str(error).strip() or type(error).__name__}"))
            continue
        if not nats[name] <= allowed:
            problems.append(
                f"{name} computes another model from it: a log-probability of the canary prompt differs from the "
                f"learner's by {nats[name]:.3g} nats (weights.max_logp_diff={allowed:g})"
            )
    return ExportCheck(nats, tuple(problems))
