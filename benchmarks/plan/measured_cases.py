"""Cases of the planner benchmark, run on real engines: seconds of each stage by itself, GiB of each role, seconds of a
step."""

from __future__ import annotations

import asyncio
import hashlib
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.peak_memory import peak_gib_by_role
from benchmarks.common.sized_models import model_folder
from benchmarks.common.timed_runs import train_timed
from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import examples_from_siblings, reward_group
from demopsd_dist.data.packing import pack
from demopsd_dist.data.prefix_tree import new_nodes
from demopsd_dist.data.records import Question, Rollout, TrainingExample
from demopsd_dist.data.sources import load_data
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.planning.calibration import MeasuredRun
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.planning.workload import Traffic, split_of, workload_of
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import Task
from demopsd_dist.training.step_prompts import train_sampling
from launch._task import build_task
from workers.actors import RayActors
from workers.cluster import session

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
Row = dict[str, Any]
ALL = ["learner.learning_rate=1e-9", "evaluation.at_start=false", "leakage.every_steps=0", "weights.max_logp_diff=0.5"]
RANDOM = ["reward=benchmarks.plan.measured_cases.coin", "data.minisci_train_size=256"]
ONE = ["rollout.num_workers=1", "learner.num_workers=1", "teacher.threads=1"]
TWO_THREADS = ["rollout.num_workers=1", "rollout.threads=2", "learner.num_workers=1", "learner.threads=2"]


@dataclass(frozen=True)
class MeasuredCase:
    """Settings of one case."""

    name: str
    model: str
    words: tuple[str, ...]
    prompts: int
    group: int
    tokens: int  # of a response, at most
    fits: bool  # part of the fit; otherwise only predicted
    split_of: str = ""  # name of the workload, where the case is one of several splits of it

    @property
    def steps(self) -> int:
        return STEPS_OF_A_SPLIT if self.split_of else STEPS

    def config(self, folder: Path) -> Config:
        words = [*ALL, *self.words, f"rollout.prompts_per_step={self.prompts}", f"rollout.group_size={self.group}"]
        words += [f"rollout.max_response_tokens={self.tokens}", f"steps={self.steps}"]
        if self.model != "minisci":
            words += [*RANDOM, f"model.path={folder}", "model.precision=float32"]
        return load(DEMO, words)


def sized_case(
    model: str, words: Sequence[str], prompts: int, group: int, tokens: int, suffix: str, fits: bool = True
) -> MeasuredCase:
    return MeasuredCase(f"{model} {suffix}", model, tuple(words), prompts, group, tokens, fits)


STEPS, STEPS_OF_A_SPLIT = 5, 10
ZERO_0 = ["learner.zero_stage=0"]
CASES = [
    sized_case("3M", [], 16, 8, 48, "two and two"),
    sized_case("3M", [*ONE, *ZERO_0], 12, 8, 12, "one and one"),
    sized_case("10M", [], 12, 4, 96, "two and two"),
    sized_case("10M", [*TWO_THREADS, *ZERO_0], 12, 4, 20, "two threads"),
    sized_case("30M", [], 6, 8, 32, "two and two"),
    sized_case("30M", [*ONE, *ZERO_0], 3, 4, 64, "one and one"),
    sized_case("60M", ["learner.zero_stage=3"], 6, 4, 20, "two and two, ZeRO-3"),
    sized_case("60M", [*TWO_THREADS, "learner.zero_stage=1"], 4, 4, 40, "two threads"),
    sized_case("250M", [*TWO_THREADS, *ZERO_0], 3, 4, 24, "two threads"),
    sized_case("minisci", [], 24, 8, 64, "demo", fits=False),
    sized_case("100M", [], 6, 4, 32, "two and two", fits=False),
    sized_case("500M", [*TWO_THREADS, *ZERO_0], 2, 4, 24, "two threads", fits=False),
    sized_case("500M", [*TWO_THREADS, *ZERO_0, "model.lora_rank=16"], 2, 4, 24, "two threads, LoRA", fits=False),
]
"""Cases; the models of the fit have other sizes than the predicted ones."""
SPLITS = (  # of the demo on two cores: engines x threads, threads of the teacher, ranks x threads, ahead
    ((2, 1), 2, (2, 1), 0),
    ((2, 1), 2, (2, 1), 1),
    ((2, 1), 1, (2, 1), 0),
    ((2, 1), 2, (1, 2), 0),
    ((1, 2), 2, (2, 1), 0),
    ((1, 2), 2, (1, 2), 0),
    ((1, 2), 2, (1, 2), 1),
    ((1, 1), 2, (1, 1), 0),
    ((1, 1), 1, (1, 1), 0),
    ((1, 1), 1, (1, 1), 1),
    ((1, 1), 2, (1, 1), 1),
    ((1, 1), 1, (2, 1), 1),
    ((2, 1), 1, (1, 1), 1),
    ((2, 1), 1, (2, 1), 1),
    ((2, 1), 2, (1, 1), 0),
)


def split_case(rollout: tuple[int, int], teacher: int, learner: tuple[int, int], ahead: int) -> MeasuredCase:
    words = [f"rollout.num_workers={rollout[0]}", f"rollout.threads={rollout[1]}", f"teacher.threads={teacher}"]
    words += [f"learner.num_workers={learner[0]}", f"learner.threads={learner[1]}", f"rollout.ahead={ahead}"]
    name = f"demo {rollout[0]}x{rollout[1]} {teacher} {learner[0]}x{learner[1]} ahead {ahead}"
    return MeasuredCase(name, "minisci", tuple(words), 24, 8, 64, fits=False, split_of="the demo")


CASES += [split_case(*split) for split in SPLITS]


def coin(response: str, question: Question) -> float:
    """Reward by a hash of the response, right for three of four: a model with random weights then learns like a trained
    one. Nearly all responses have a right sibling, so that steps are alike."""
    return float(hashlib.blake2b(response.encode(), digest_size=1).digest()[0] % 4 > 0)


def run(case: MeasuredCase, rounds: int) -> Row:
    """Run a case: a row of the results, with the fields of `MeasuredRun` and the step time of the driver."""
    with ExitStack() as stack:
        folder = MODEL_DIR if case.model == "minisci" else stack.enter_context(model_folder(case.model))
        config = case.config(folder)
        task = build_task(config, folder, load_data(config.data).questions)[0]
        session.join(config)
        actors = RayActors(config, folder)
        stack.callback(actors.stop)
        roles = asyncio.run(actors.start())
        step_s = settled_s([metrics["perf/step_s"] for metrics in train_timed(config, roles, task).steps], config, case)
        seconds, groups, examples = asyncio.run(stages(config, roles, task, rounds))
        memory, _ = asyncio.run(peak_gib_by_role(actors))
        workload = workload_of(config, shape_of(str(folder)), traffic_of(groups, examples))
    measured = MeasuredRun(case.name, workload, split_of(config, workload), seconds, memory)
    return {**asdict(measured), "step_s": step_s, "fits": case.fits, "split_of": case.split_of}


def settled_s(steps_s: Sequence[float], config: Config, case: MeasuredCase) -> float:
    """Seconds of the fastest step after the first; of a split, their mean, as steps overlap with `ahead`. The first and
    the last step have less work and do not count."""
    ahead = config.rollout.ahead
    counted = steps_s[1 + ahead : len(steps_s) - ahead]
    return statistics.mean(counted) if case.split_of else min(counted)


async def stages(
    config: Config, roles: Roles, task: Task, rounds: int
) -> tuple[dict[str, float], list[list[Rollout]], list[TrainingExample]]:
    """Seconds of each stage by itself, the fastest of the rounds after the first, as the machine is shared.

    Returns also the last round's rollout groups and examples.
    """
    rounds_s: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        clock = time.monotonic()
        spent: dict[str, float] = {}

        def lap(stage: str, spent: dict[str, float] = spent) -> None:
            nonlocal clock
            now = time.monotonic()
            spent[stage], clock = spent.get(stage, 0.0) + now - clock, now

        groups = await roles.rollouts.sample(
            task.train[: config.rollout.prompts_per_step], train_sampling(config, turn)
        )
        lap("sample")
        rewarded = [reward_group(group, task.reward) for group in groups]
        batch_examples = examples_from_siblings(rewarded, task.prompts, exclude_own_success=True, seed=str(turn))
        lap("driver")
        supports = await roles.learners.support(batch_examples.examples)
        lap("support")
        scored = await roles.teacher.score(batch_examples.examples, supports, resolve_method(config).forwards)
        lap("score")
        sizes = (config.learner.micro_batch_tokens, config.model.tree_tokens)
        batch = pack(scored, batch_examples.size, roles.learners.dp_size, *sizes)
        lap("driver")
        await roles.learners.step(batch)
        lap("learn")
        await roles.weights.publish(config.steps + turn + 1)
        lap("publish")
        for stage, value in spent.items() if turn else ():
            rounds_s.setdefault(stage, []).append(value)
    return {stage: min(values) for stage, values in rounds_s.items()}, groups, batch_examples.examples


def traffic_of(groups: Sequence[Sequence[Rollout]], examples: Sequence[TrainingExample]) -> Traffic:
    """Statistics of the data in this run."""
    rollouts = [rollout for group in groups for rollout in group]
    lengths = [len(rollout.tokens_T) for rollout in rollouts]
    by_question: dict[str, list[TrainingExample]] = {}
    for example in examples:
        by_question.setdefault(example.prompt.id, []).append(example)
    own = sum(added for group in by_question.values() for _, added in new_nodes([one.student_input for one in group]))
    own -= sum(len(group[0].prompt.tokens) for group in by_question.values())
    siblings = len(examples) / len(by_question)
    repeated = 1 - own / sum(len(example.response_T) for example in examples)
    return Traffic(
        prompt_tokens=statistics.mean(len(group[0].prompt.tokens) for group in groups),
        response_tokens=statistics.mean(lengths),
        response_spread=statistics.pstdev(math.log(length) for length in lengths),
        solution_tokens=statistics.mean(len(one.privileged_tokens) - len(one.prompt.tokens) for one in examples),
        right_fraction=_right_fraction(len(examples) / len(rollouts), len(groups[0])),
        shared_fraction=max(0.0, min(1.0, repeated * siblings / max(siblings - 1, 1))),
    )


def _right_fraction(learned: float, size: int) -> float:
    """Fraction of right responses at which the fraction `learned` has a right sibling, with independent responses."""
    return 1 - (1 - min(learned, 0.999)) ** (1 / (size - 1))
