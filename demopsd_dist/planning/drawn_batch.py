"""A step's batch, drawn: lengths of responses, who is learned from, and the rows and padded_batches that the run's own
packing makes of them. Nothing random but a fixed seed: the same job is always the same batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from demopsd_dist.data.packing import Row, RowLayout, assign_rows, padded_batches
from demopsd_dist.data.records import Tokens
from demopsd_dist.planning.workload import Traffic, Workload


@dataclass(frozen=True)
class DrawnResponse:
    group: int
    sample: int
    tokens: int
    solution: int | None  # the sibling that the teacher sees; None where it is not learned from


@dataclass(frozen=True)
class DrawnBatch:
    """Rows of one forward, padded to the longest: `rows` lines of `length` tokens, `predicted` of them by the head."""

    rows: int
    length: int
    responses: int
    predicted: int
    masked: bool  # several responses in a row: attention looks at all pairs, else at half of them

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@lru_cache(maxsize=64)
def responses(job: Workload) -> tuple[DrawnResponse, ...]:
    """All responses of a step, group after group."""
    random_of = random.Random(0)
    lengths = lengths_of(job.traffic, job.samples, job.max_response_tokens)
    found = []
    for group in range(job.prompts):
        right = [i for i in range(job.group_size) if random_of.random() < job.traffic.right_fraction]
        for sample in range(job.group_size):
            others = [i for i in right if i != sample]
            solution = random_of.choice(others) if others else None
            if not job.shows_solutions:  # learned from by advantage, as long as rewards differ
                solution = sample if 0 < len(right) < job.group_size else None
            found.append(DrawnResponse(group, sample, lengths[group * job.group_size + sample], solution))
    return tuple(found)


def lengths_of(traffic: Traffic, count: int, longest: int) -> list[int]:
    """Log-normal, cut at `longest`, with the mean of the traffic after the cut."""
    draws = np.random.default_rng(0).standard_normal(count)
    mean = min(traffic.response_tokens, longest)
    low, high = math.log(max(mean, 1.0)) - 5.0, math.log(max(mean, 1.0)) + 5.0
    for _ in range(40):
        middle = (low + high) / 2
        tokens = np.minimum(np.exp(middle + traffic.response_spread * draws), longest)
        low, high = (middle, high) if tokens.mean() < mean else (low, middle)
    return [max(1, round(value)) for value in np.minimum(np.exp(low + traffic.response_spread * draws), longest)]


def learned(job: Workload) -> list[DrawnResponse]:
    return [response for response in responses(job) if response.solution is not None]


@dataclass(frozen=True)
class DrawnLayout(RowLayout[DrawnResponse]):
    """Rows as the run's `RowLayout` cuts them, from lengths alone: siblings share the prompt, the solution where they see
    the same one, and the beginning of the response."""

    job: Workload
    solution: int  # tokens of it in a row; 0 for what the student sees

    def _cut(self, group: list[DrawnResponse], bound: int) -> list[Row[DrawnResponse]]:
        prompt = round(self.job.traffic.prompt_tokens)
        rows: list[Row[DrawnResponse]] = []
        before: DrawnResponse | None = None
        for item in sorted(group, key=lambda item: (self.solution and item.solution, item.sample)):
            whole = prompt + self.solution + item.tokens - 1  # the last token is predicted, and goes into nothing
            shared = prompt
            if before is not None and (not self.solution or before.solution == item.solution):
                alike = round(self.job.traffic.shared_fraction * min(item.tokens, before.tokens))
                shared += self.solution + min(alike, item.tokens - 1)
            before = item
            if rows and rows[-1].tokens + whole - shared <= bound:
                rows[-1] = Row((*rows[-1].items, item), rows[-1].tokens + whole - shared)
            else:
                rows.append(Row((item,), whole))
        return rows


def student_rows(job: Workload) -> DrawnLayout:
    return _layout(job, 0)


def teacher_rows(job: Workload) -> DrawnLayout:
    room = job.max_privileged_tokens - round(job.traffic.prompt_tokens)
    return _layout(job, max(0, min(round(job.traffic.solution_tokens), room)))


def _layout(job: Workload, solution: int) -> DrawnLayout:
    def unread(item: DrawnResponse) -> Tokens:
        raise AssertionError("a drawn response has no tokens")

    return DrawnLayout(lambda item: item.group, unread, job.tree_tokens, job, solution)


def batches(rows: Sequence[Row[DrawnResponse]], padded_tokens: int) -> list[DrawnBatch]:
    """The padded_batches of one worker."""
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
def learner_batches(job: Workload, ranks: int) -> tuple[tuple[DrawnBatch, ...], ...]:
    """Of every rank, as the driver packs them."""
    dealt = assign_rows(learned(job), student_rows(job), ranks)
    return tuple(tuple(batches(rows, job.micro_batch_tokens)) for rows in dealt)


@lru_cache(maxsize=256)
def teacher_batches(job: Workload, replicas: int, *, privileged: bool) -> tuple[tuple[DrawnBatch, ...], ...]:
    """Of every replica: siblings go to one by the student's rows, and are laid out by what the teacher sees."""
    layout = teacher_rows(job) if privileged else student_rows(job)
    dealt = assign_rows(learned(job), student_rows(job), replicas)
    return tuple(
        tuple(batches(layout.rows([item for row in rows for item in row.items]), job.teacher_batch_tokens))
        for rows in dealt
    )
