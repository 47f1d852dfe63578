"""Rollout workers added on request: every failure is reported at once, and later requests are followed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest

from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.util.errors import ConfigError, WorkerError
from launch._scaling import answer_file, read_message, request_file, scaled_on_request
from workers.rollout.pool import RolloutPool


class FailingPool:
    """A pool whose next changes of size raise these errors; later ones succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.group, self._errors = [0], list(errors)

    async def resize(self, workers: int) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.group = list(range(workers))


async def answer_to(folder: RunFolder, name: str, workers: object) -> dict[str, Any]:
    replace_text(request_file(folder), json.dumps({"id": name, "workers": workers}))
    for _ in range(200):
        answer = read_message(answer_file(folder))
        if answer is not None and answer["id"] == name:
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"no answer to {name}")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ConfigError("node-2: its code is not that of this machine."), "its code is not that of this machine"),
        (WorkerError("the cluster did not place rollout 2"), "did not place rollout 2"),
        (RuntimeError("nobody expected this"), "RuntimeError: nobody expected this"),
    ],
    ids=["other code", "no room", "unexpected"],
)
def test_a_failure_is_reported_at_once_and_the_next_request_followed(
    tmp_path: Path, error: Exception, problem: str
) -> None:
    folder, said = RunFolder(tmp_path), list[str]()

    async def train() -> None:
        async with scaled_on_request(folder, cast(RolloutPool, FailingPool(error)), said.append):
            answer = await answer_to(folder, "first", 3)
            assert answer["workers"] == 1
            assert problem in answer["problem"]
            assert problem in said[-1], "in the log, while training goes on"
            assert (await answer_to(folder, "second", 3)) == {"id": "second", "workers": 3, "problem": None}

    asyncio.run(train())
    assert said[-1] == "rollout workers: 3 serve"


@pytest.mark.parametrize("workers", [0, -1, "two", None, 1.5])
def test_a_request_that_is_no_number_is_answered(tmp_path: Path, workers: object) -> None:
    folder = RunFolder(tmp_path)

    async def train() -> None:
        async with scaled_on_request(folder, cast(RolloutPool, FailingPool()), lambda _: None):
            answer = await answer_to(folder, "only", workers)
            assert "is no number of rollout workers" in answer["problem"]

    asyncio.run(train())


def test_an_answer_that_cannot_be_written_is_said_and_the_next_request_followed(tmp_path: Path) -> None:
    folder, said = RunFolder(tmp_path), list[str]()

    async def train() -> None:
        async with scaled_on_request(folder, cast(RolloutPool, FailingPool()), said.append):
            answer_file(folder).mkdir()
            replace_text(request_file(folder), json.dumps({"id": "first", "workers": 2}))
            while not any("cannot be written" in line for line in said):
                await asyncio.sleep(0.05)
            answer_file(folder).rmdir()
            assert (await answer_to(folder, "second", 3))["workers"] == 3

    asyncio.run(asyncio.wait_for(train(), 30))
