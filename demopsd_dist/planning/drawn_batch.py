"""A drawn step batch: lengths of responses, the responses that are training examples, and their rows and micro-batches,
laid out by the run's own packing. The seed is fixed: the same workload always gives the same batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from demopsd_dist.config import SolutionSource
from demopsd_dist.data.packing import Row, RowLayout, assign_rows, padded_batches
from demopsd_dist.data.records import Tokens
from demopsd_dist.planning.workload import Traffic, Workload

SAME_FOR_ALL = -1  # the data set's solution or the bare answer, which all responses to a question share


@dataclass(frozen=True)
class DrawnResponse:
    """A response of known length and unknown text.

    Attributes:
        solution_id: label of the solution in the teacher's prompt; responses with the same label share its tokens. It
            is the index of the sibling shown, or `SAME_FOR_ALL`, or the response's own index where each has a solution
            of its own or the method shows none. None if the response is no training example.
    """

    group: int
    sample: int
    tokens: int
    solution_id: int | None


@dataclass(frozen=True)
class DrawnBatch:
    """Rows of one forward: `rows` rows padded to `length` tokens; the head predicts `predicted` tokens of them."""

    rows: int
    length: int
    responses: int
    predicted: int
    masked: bool  # several responses in a row: attention computes all pairs, otherwise half of them

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@lru_cache(maxsize=64)
def draw_responses(workload: Workload) -> tuple[DrawnResponse, ...]:
    """Draw all responses of a step, group after group."""
    generator = random.Random(0)
    lengths = draw_lengths(workload.traffic, workload.samples, workload.max_response_tokens)
    drawn = []
    for group in range(workload.prompts):
        right = [i for i in range(workload.group_size) if generator.random() < workload.traffic.right_fraction]
        for sample in range(workload.group_size):
            others = [i for i in right if i != sample]
            solution = generator.choice(others) if others else None
            source = SolutionSource(workload.solution_source)
            if source is SolutionSource.other_question:  # one of its own for each response, also without siblings
                solution = sample
            elif not source.shows_siblings or (solution is None and source is not SolutionSource.sibling):
                solution = SAME_FOR_ALL
            if not workload.shows_solutions:  # methods that use advantages train on all responses if rewards differ
                solution = sample if 0 < len(right) < workload.group_size else None
            drawn.append(DrawnResponse(group, sample, lengths[group * workload.group_size + sample], solution))
    return tuple(drawn)


def draw_lengths(traffic: Traffic, count: int, longest: int) -> list[int]:
    """Draw log-normal lengths in tokens, cut at `longest`; their mean after the cut is that of the traffic."""
    draws = np.random.default_rng(0).standard_normal(count)
    mean = min(traffic.response_tokens, longest)
    low, high = math.log(max(mean, 1.0)) - 5.0, math.log(max(mean, 1.0)) + 5.0
    for _ in range(40):
        middle = (low + high) / 2
        tokens = np.minimum(np.exp(middle + traffic.response_spread * draws), longest)
        low, high = (middle, high) if tokens.mean() < mean else (low, middle)
    return [max(1, round(value)) for value in np.minimum(np.exp(low + traffic.response_spread * draws), longest)]


def learned_responses(workload: Workload) -> list[DrawnResponse]:
    """Responses that are training examples."""
    return [response for response in draw_responses(workload) if response.solution_id is not None]


@dataclass(frozen=True)
class DrawnLayout(RowLayout[DrawnResponse]):
    """Row layout of the run from lengths alone: siblings share the prompt, the solution where it is the same one, and
    the beginning of the response."""

    workload: Workload
    solution_tokens: int  # in a row; 0 in the student's rows

    def _cut(self, group: list[DrawnResponse], bound: int) -> list[Row[DrawnResponse]]:
        prompt = round(self.workload.traffic.prompt_tokens)
        rows: list[Row[DrawnResponse]] = []
        before: DrawnResponse | None = None
        for item in sorted(group, key=lambda item: (self.solution_tokens and item.solution_id, item.sample)):
            total = prompt + self.solution_tokens + item.tokens - 1  # the last token is predicted, and is no input
            shared = prompt
            if before is not None and (not self.solution_tokens or before.solution_id == item.solution_id):
                alike = round(self.workload.traffic.shared_fraction * min(item.tokens, before.tokens))
                shared += self.solution_tokens + min(alike, item.tokens - 1)
            before = item
            if rows and rows[-1].tokens + total - shared <= bound:
                rows[-1] = Row((*rows[-1].items, item), rows[-1].tokens + total - shared)
            else:
                rows.append(Row((item,), total))
        return rows


def student_layout(workload: Workload) -> DrawnLayout:
    """Row layout of the student's and the reference's prompts."""
    return _layout(workload, 0)


def teacher_layout(workload: Workload) -> DrawnLayout:
    """Row layout of the privileged prompts; a solution is cut to `privileged.max_tokens`."""
    longest = workload.max_privileged_tokens - round(workload.traffic.prompt_tokens)
    return _layout(workload, max(0, min(round(workload.traffic.solution_tokens), longest)))


def _layout(workload: Workload, solution: int) -> DrawnLayout:
    def no_tokens(item: DrawnResponse) -> Tokens:
        raise AssertionError("a drawn response has no tokens")

    return DrawnLayout(lambda item: item.group, no_tokens, workload.tree_tokens, workload, solution)


def micro_batches(rows: Sequence[Row[DrawnResponse]], padded_tokens: int) -> list[DrawnBatch]:
    """Micro-batches of one worker."""
    return [
        DrawnBatch(
            rows=len(padded_batch),
            length=padded_batch[0].tokens,
            responses=sum(len(row.items) for row in padded_batch),
            predicted=sum(response.tokens for row in padded_batch for response in row.items),
            masked=any(len(row.items) > 1 for row in padded_batch),
        )
        for padded_batch in padded_batches(rows, padded_tokens)
    ]


@lru_cache(maxsize=256)
def learner_batches(workload: Workload, ranks: int) -> tuple[tuple[DrawnBatch, ...], ...]:
    """Micro-batches of every rank, as the driver packs them."""
    assigned = assign_rows(learned_responses(workload), student_layout(workload), ranks)
    return tuple(tuple(micro_batches(rows, workload.micro_batch_tokens)) for rows in assigned)


@lru_cache(maxsize=256)
def teacher_batches(workload: Workload, replicas: int, *, privileged: bool) -> tuple[tuple[DrawnBatch, ...], ...]:
    """Micro-batches of every replica: assigned by the student's rows, so that siblings stay together, then laid out
    with the prompts that this forward has."""
    layout = teacher_layout(workload) if privileged else student_layout(workload)
    assigned = assign_rows(learned_responses(workload), student_layout(workload), replicas)
    return tuple(
        tuple(micro_batches(layout.rows([item for row in rows for item in row.items]), workload.teacher_batch_tokens))
        for rows in assigned
    )
