"""Accuracy of a model on tasks of reasoning-gym, alone and with a solution in its prompt: `python -m benchmarks.tasks`

Self-distillation needs tasks that the model solves sometimes, and more often where it sees a solution. For each task
this samples validation questions (their seed is no run's) with the student's prompt, then with the teacher's, which
shows a right response to the same question or, where there was none, the expected answer in the form of the reward. A
task is suitable if the model is right in 20 to 50 % of its responses, and by 30 points more often with a solution.
`--set` changes a setting for all of them, such as the temperature.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.config import Config, load
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.data.rewards import ANSWER_FORMS
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Task
from launch._processes import fenced
from launch._task import build_task, provenance
from workers.actors import RolloutActors
from workers.cluster import session
from workers.rollout.group import RolloutGroup

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "smollm2.yaml"
REWARD = "gsm8k"
WORDS = ["rollout.prompts_per_step=1", f"reward={REWARD}", "data.suffix=' Give the final number on the last line.'"]
NAME, QUESTIONS = "gym-tasks-cpu", 24
VALIDATION_SEED = 90_000
RIGHT, LIFT = (0.2, 0.5), 0.3
CANDIDATES = (
    *(f"chain_sum?max_terms={terms}&max_digits={digits}" for terms, digits in ((2, 1), (2, 2), (3, 1), (4, 1), (3, 2))),
    *(f"products?max_terms=2&max_digits={digits}" for digits in (1, 2)),
    *(f"basic_arithmetic?max_terms={terms}&max_digits=1" for terms in (2, 3)),
    *(f"decimal_chain_sum?max_terms=2&max_digits={digits}" for digits in (1, 2)),
    *(f"leg_counting?min_animals=1&max_animals={animals}&max_instances=3" for animals in (1, 2, 3)),
    *(f"letter_counting?max_words={words}" for words in (5, 8)),
    *(f"gcd?max_numbers=2&max_value={value}" for value in (20, 100)),
    *(f"lcm?max_numbers=2&max_value={value}" for value in (10, 20)),
    *(f"simple_equations?min_terms=2&max_terms=2&max_value={value}" for value in (10, 30)),
    *(f"count_bits?max_n={largest}" for largest in (15, 100)),
    *("number_sequence?max_complexity=1", "count_primes?max_n=30", "gsm_symbolic", "aiw", "rectangle_count"),
)


@dataclass(frozen=True)
class TaskAccuracy:
    """Figures of one task. A reward is the task's own, from 0 to 1.

    Attributes:
        alone: mean reward with the student's prompt.
        with_solution: mean reward with the teacher's prompt.
        solved: share of the questions with a right response, which is shown as their solution.
        response_tokens: mean length with the student's prompt.
        truncated: share of these responses that were cut at the limit.
    """

    task: str
    questions: int
    alone: float
    with_solution: float
    solved: float
    response_tokens: float
    truncated: float
    seconds: float

    @property
    def is_suitable(self) -> bool:
        """Whether the model is right sometimes, and clearly more often with a solution."""
        return RIGHT[0] <= self.alone <= RIGHT[1] and self.with_solution - self.alone >= LIFT


def source_of(spec: str, settings: str) -> str:
    """The data set of a candidate, with further settings of its generator, `size=24&seed=1`."""
    return f"gym:{spec}{'&' if '?' in spec else '?'}{settings}"


def task_of(spec: str, questions: int, config: Config, folder: Path) -> Task:
    """Validation questions of one candidate, as training questions of a run.

    Raises:
        ConfigError: a setting that the task does not have.
        DataError: the generator failed.
    """
    train = source_of(spec, f"size={questions}&seed={VALIDATION_SEED}")
    data = replace(config.data, train=train, test=None, ood=None)
    return build_task(replace(config, data=data), folder, load_data(data).questions)[0]


def measured(spec: str, config: Config, folder: Path, group: RolloutGroup, questions: int) -> TaskAccuracy:
    """Sample the responses of one task in both prompts."""
    began, task = time.monotonic(), task_of(spec, questions, config, folder)
    settings = config.rollout
    limits = (settings.temperature, 1.0, settings.max_response_tokens)

    def sample(prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        return asyncio.run(group.sample(prompts, Sampling(settings.group_size, *limits, "validation")))

    def reward(rollout: Rollout) -> float:
        return task.reward(rollout.text, rollout.prompt.question).reward

    plain = sample(task.train)
    rewards = [[reward(rollout) for rollout in siblings] for siblings in plain]
    right = [[r.text for r, got in zip(*pair, strict=True) if got >= 1] for pair in zip(plain, rewards, strict=True)]
    shown = []
    for prompt, texts in zip(task.train, right, strict=True):
        solution = texts[0] if texts else ANSWER_FORMS[REWARD].write(prompt.question.answer)
        shown.append(replace(prompt, tokens=task.prompts.privileged(prompt.question, solution)))
    informed = [[reward(rollout) for rollout in siblings] for siblings in sample(shown)]
    every = [rollout for siblings in plain for rollout in siblings]
    return TaskAccuracy(
        task=spec,
        questions=len(task.train),
        alone=sum(map(sum, rewards)) / len(every),
        with_solution=sum(map(sum, informed)) / sum(map(len, informed)),
        solved=sum(map(bool, right)) / len(right),
        response_tokens=sum(len(rollout.tokens_T) for rollout in every) / len(every),
        truncated=sum(rollout.truncated for rollout in every) / len(every),
        seconds=time.monotonic() - began,
    )


def report(rows: Sequence[TaskAccuracy], config: Config, tasks: Sequence[str], options: Sequence[str]) -> list[str]:
    """Lines of the page.

    Args:
        tasks: tasks that the command measures; more than `rows` as long as it runs.
        options: the command's other words.
    """
    settings = config.rollout
    given = [] if tuple(tasks) == CANDIDATES else tasks
    command = " ".join(["python -m benchmarks.tasks", *map(shlex.quote, [*options, *given])])
    measured_so_far = f"; {len(rows)} of {len(tasks)} tasks so far" if len(rows) < len(tasks) else ""
    lines = [
        "# Tasks for a small model",
        "",
        f"`{command}`{measured_so_far}. {config.model.path}, {settings.group_size} responses of at most "
        f"{settings.max_response_tokens} tokens at temperature {settings.temperature:g} to each validation question, "
        "mean reward with the student's prompt and with a solution in it. Suitable: "
        f"{RIGHT[0]:.0%} to {RIGHT[1]:.0%} alone, and {LIFT:.0%} more with a solution.",
        "",
        "| task | questions | alone | with a solution | questions solved | response tokens | cut off | suitable |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (not row.is_suitable, -row.alone)):
        lines.append(
            f"| `{row.task}` | {row.questions} | {row.alone:.1%} | {row.with_solution:.1%} | {row.solved:.0%} | "
            f"{row.response_tokens:.0f} | {row.truncated:.0%} | {'yes' if row.is_suitable else ''} |"
        )
    return lines


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=CANDIDATES, metavar="task?settings", help="default: a list")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="questions of a task")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a setting of the config")
    parser.add_argument("--name", default=NAME, help="name of the results' files")
    arguments = parser.parse_args()
    config = load(CONFIG, [*WORDS, *arguments.set])
    options = [word for one in arguments.set for word in ("--set", one)]
    options += ["--name", arguments.name] if arguments.name != NAME else []
    options += ["--questions", str(arguments.questions)] if arguments.questions != QUESTIONS else []
    folder = model_folder(config)
    config, _ = resolve_precision(config, folder)
    rows: list[TaskAccuracy] = []
    with fenced():
        session.join(config)
        actors = RolloutActors(config, folder)
        try:
            group = asyncio.run(actors.start())
            for spec in arguments.tasks:
                rows.append(measured(spec, config, folder, group, arguments.questions))
                row = rows[-1]
                print(f"{row.alone:6.1%} {row.with_solution:6.1%} {row.seconds:5.0f} s  {row.task}", flush=True)
                result = {"tasks": [asdict(one) for one in rows], **provenance(config)}
                save(arguments.out, arguments.name, result, report(rows, config, arguments.tasks, options))
        finally:
            actors.stop()


if __name__ == "__main__":
    main()
