"""The leakage probe: the information that teacher and target carry about *which* solution was shown.

One response is scored under M solutions in turn; the mutual information of its next token and the solution follows
from the M distributions (`objective.mutual_information`). There are two families of solutions. Different correct
siblings all hold the same answer. Bare answers (`<answer>X</answer>`, or the form of the chosen reward), one of them
right, show leakage of the answer itself, which siblings cannot show.
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
from demopsd_dist.methods import MethodSpec, at_step, objective_of
from demopsd_dist.objective import Objective, TokenViews, gated, mutual_information, target_of
from demopsd_dist.training.roles import Teacher


@dataclass(frozen=True)
class LeakageProbe:
    """One response, and the solutions under which it is scored."""

    family: str
    item: ScoredExample
    solutions: list[str]
    feedback: str | None = None  # feedback that is shown with each solution, as in training


def is_due(cfg: Config, method: MethodSpec, step: int) -> bool:
    """True at the first step and every `leakage.every_steps` steps after it. `step` counts the steps done before."""
    every = cfg.leakage.every_steps
    return bool(every) and method.shows_solutions and step % every == 0


async def measure(
    cfg: Config,
    method: MethodSpec,
    teacher: Teacher,
    builder: PromptBuilder,
    groups: Sequence[RewardedGroup],
    scored: Sequence[ScoredExample],
    step: int = 0,
) -> dict[str, float]:
    """Mutual information of next token and shown solution, for each family of solutions, as metrics.

    Teacher and target in nats a token, their ratio, and the mean M. Empty if no response has two different solutions.
    """
    probes = list(select_probes(cfg, groups, scored))
    examples, supports = [], []
    for probe in probes:
        for solution in probe.solutions:
            view = builder.privileged(probe.item.prompt.question, solution, probe.feedback)
            examples.append(replace(probe.item.example, privileged_tokens=view))
            supports.append(probe.item.support_TK)
    answers = iter(await teacher.score(examples, supports, method.probe_forwards))
    totals: dict[str, dict[str, float]] = {}
    objective = at_step(objective_of(cfg), cfg, step + 1)
    for probe in probes:
        contexts = [next(answers) for _ in probe.solutions]
        total = totals.setdefault(probe.family, {"teacher": 0.0, "target": 0.0, "tokens": 0.0, "m": 0.0, "probes": 0.0})
        teacher_T, target_T = _information(objective, contexts)
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


def select_probes(
    cfg: Config, groups: Sequence[RewardedGroup], scored: Sequence[ScoredExample]
) -> Iterator[LeakageProbe]:
    """The first `leakage.prompts` groups with two solutions, for each family; one response of each group."""
    count, contexts = cfg.leakage.prompts, cfg.leakage.contexts
    first: dict[str, ScoredExample] = {}
    for item in scored:
        first.setdefault(item.prompt.id, item)
    chosen = [(group, first[group.prompt.id]) for group in groups if group.prompt.id in first]
    others = [group.prompt.question.answer for group in groups]
    form = answer_form(cfg.reward)
    left = {"siblings": count, "answers": count}
    for group, item in chosen:
        index = group.index_of(item.rollout.sample)
        feedback = group.results[index].feedback if cfg.privileged.feedback else None
        families = {
            "siblings": [group.solution(i) for i in group.siblings(index, cfg.privileged.exclude_own_success)],
            "answers": [form.write(answer) for answer in _answers(group, others, form)],
        }
        for family, solutions in families.items():
            different = list(dict.fromkeys(solutions))[:contexts]
            if len(different) >= 2 and left[family]:
                left[family] -= 1
                yield LeakageProbe(family, item, different, feedback)


def _answers(group: RewardedGroup, others: Sequence[str], form: AnswerForm) -> list[str]:
    """The right answer, then the answers in the group's responses, then the right answers to other questions."""
    extracted = [form.extract(rollout.full_text) for rollout in group.rollouts]
    return [group.prompt.question.answer, *(answer for answer in extracted if answer), *others]


def _information(objective: Objective, contexts: Sequence[ScoredExample]) -> tuple[Tensor, Tensor]:
    """Mutual information of teacher and of target at each token, (T,), nats. For an objective of the user's without a
    `target` it is the teacher's."""
    teacher_MTA = torch.stack([_tensor(item.teacher_logp_TA) for item in contexts])
    reference = contexts[0].reference_logp_TA
    reference_MTA = teacher_MTA if reference is None else _tensor(reference).expand_as(teacher_MTA)
    alpha_MT = None
    if (inner := gated(objective)) is not None:
        lengths = [teacher_MTA.shape[1]] * len(contexts)
        alpha_N = inner.trajectory_alpha(reference_MTA.flatten(0, 1), teacher_MTA.flatten(0, 1), lengths)
        alpha_MT = None if alpha_N is None else alpha_N.view(teacher_MTA.shape[:2])
    target_MTA = target_of(objective, TokenViews(reference_MTA, reference_MTA, teacher_MTA, alpha_BT=alpha_MT))
    return mutual_information(teacher_MTA), mutual_information(teacher_MTA if target_MTA is None else target_MTA)


def _tensor(values) -> Tensor:
    return torch.from_numpy(values.copy()).double()
