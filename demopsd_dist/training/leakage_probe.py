"""The leakage probe: how much teacher and target tell about *which* solution was shown.

One response is scored under M solutions in turn; the mutual information of its next token and the solution follows
from the M distributions (`objective.information`). Two families of solutions: different correct siblings, which all
hold the same answer, and bare answers (`<answer>X</answer>`, or the form of the chosen reward) of which one is right,
which show what siblings cannot: that the answer itself leaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from demopsd_dist.config import Config
from demopsd_dist.data.examples import RewardedGroup
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import ScoredExample
from demopsd_dist.data.rewards import AnswerForm, answer_form
from demopsd_dist.methods import objective_of, resolve_method
from demopsd_dist.objective import GRPO, information
from demopsd_dist.training.roles import Teacher


@dataclass(frozen=True)
class LeakageProbe:
    """One response, and the solutions to show with it."""

    family: str
    item: ScoredExample
    solutions: list[str]
    feedback: str | None = None  # shown with each of them, as in the example


def due(cfg: Config, step: int) -> bool:
    """At the first step, then every so many. `step` counts those done before."""
    every = cfg.leakage.every_steps
    return bool(every) and resolve_method(cfg).shows_solutions and step % every == 0


async def measure(
    cfg: Config,
    teacher: Teacher,
    builder: PromptBuilder,
    groups: Sequence[RewardedGroup],
    scored: Sequence[ScoredExample],
) -> dict[str, float]:
    """Mutual information by family, nats a token: of the teacher, of the target, their ratio, and M.

    Empty where no response has two different solutions to show.
    """
    found = list(probes(cfg, groups, scored))
    examples, supports = [], []
    for probe in found:
        for solution in probe.solutions:
            view = builder.privileged(probe.item.prompt.question, solution, probe.feedback)
            examples.append(replace(probe.item.example, privileged_tokens=view))
            supports.append(probe.item.support_TK)
    answers = iter(await teacher.score(examples, supports, resolve_method(cfg).probe))
    totals: dict[str, dict[str, float]] = {}
    for probe in found:
        contexts = [next(answers) for _ in probe.solutions]
        total = totals.setdefault(probe.family, {"teacher": 0.0, "target": 0.0, "tokens": 0.0, "m": 0.0, "probes": 0.0})
        teacher_T, target_T = _information(cfg, contexts)
        total["teacher"] += float(teacher_T.sum())
        total["target"] += float(target_T.sum())
        total["tokens"] += len(teacher_T)
        total["m"] += len(contexts)
        total["probes"] += 1
    return {
        f"leakage/{family}_{name}": value
        for family, total in totals.items()
        for name, value in {
            "teacher_nats": total["teacher"] / total["tokens"],
            "target_nats": total["target"] / total["tokens"],
            "ratio": total["target"] / total["teacher"] if total["teacher"] else 1.0,
            "contexts_mean": total["m"] / total["probes"],
        }.items()
    }


def probes(cfg: Config, groups: Sequence[RewardedGroup], scored: Sequence[ScoredExample]) -> Iterator[LeakageProbe]:
    """The first responses of different groups for which there are two solutions to show, for each family."""
    wanted, contexts = cfg.leakage.prompts, cfg.leakage.contexts
    first: dict[str, ScoredExample] = {}
    for item in scored:
        first.setdefault(item.prompt.id, item)
    chosen = [(group, first[group.prompt.id]) for group in groups if group.prompt.id in first]
    others = [group.prompt.question.answer for group in groups]
    form = answer_form(cfg.reward)
    left = {"siblings": wanted, "answers": wanted}
    for group, item in chosen:
        place = group.index_of(item.rollout.sample)
        feedback = group.results[place].feedback if cfg.privileged.feedback else None
        families = {
            "siblings": [group.rollouts[i].text for i in group.siblings(place, cfg.privileged.exclude_own_success)],
            "answers": [form.write(answer) for answer in _answers(group, others, form)],
        }
        for family, solutions in families.items():
            different = list(dict.fromkeys(solutions))[:contexts]
            if len(different) >= 2 and left[family]:
                left[family] -= 1
                yield LeakageProbe(family, item, different, feedback)


def _answers(group: RewardedGroup, others: Sequence[str], form: AnswerForm) -> list[str]:
    """The right answer, then those that the group gave, then those to other questions."""
    given = [form.extract(rollout.text) for rollout in group.rollouts]
    return [group.prompt.question.answer, *(answer for answer in given if answer), *others]


def _information(cfg: Config, contexts: Sequence[ScoredExample]) -> tuple[Tensor, Tensor]:
    """Of teacher and target at each token, (T,)."""
    method = objective_of(cfg)
    assert not isinstance(method, GRPO)
    teacher_MTA = torch.stack([_tensor(item.teacher_logp_TA) for item in contexts])
    reference = contexts[0].reference_logp_TA
    reference_MTA = teacher_MTA if reference is None else _tensor(reference).expand_as(teacher_MTA)
    return information(teacher_MTA), information(method.target(reference_MTA, teacher_MTA))


def _tensor(values) -> Tensor:
    return torch.from_numpy(values.copy()).double()
