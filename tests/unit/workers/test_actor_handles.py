"""Calls of actors are typed: mypy finds a misspelt method and wrong arguments, and knows the result."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[3]
SNIPPET = """
from workers.actor_group import ActorGroup
from workers.actor_handle import Handle

class Worker:
    def scale(self, values: list[int], *, factor: float = 1.0) -> list[float]: ...
    async def version(self) -> int: ...

class SpecialWorker(Worker):
    def own(self) -> bytes: ...

async def calls(group: ActorGroup[SpecialWorker], shards: list[list[int]]) -> None:
    {call}
"""
RIGHT = {
    "arguments by rank": (
        "scaled: list[list[float]] = await group.each("
        'lambda worker, rank: worker(Worker.scale, shards[rank], factor=2.0), within_s=1.0, what="")'
    ),
    "an async method": 'v: list[int] = await group.each(lambda w, _: w(Worker.version), within_s=1.0, what="")',
    "a method of the subclass": 'own: bytes = await group.one(0, lambda worker: worker(SpecialWorker.own), what="")',
    "a group as one of the base class": "base: ActorGroup[Worker] = group",
}
WRONG = {
    "a misspelt method": (
        'await group.each(lambda worker, rank: worker(Worker.scales, shards[rank]), within_s=1.0, what="")',
        '"type[Worker]" has no attribute "scales"',
    ),
    "an argument of another type": (
        'await group.each(lambda worker, rank: worker(Worker.scale, rank), within_s=1.0, what="")',
        'No overload variant of "__call__" of "Handle" matches',
    ),
    "an unknown keyword": (
        'await group.one(0, lambda worker: worker(Worker.scale, [1], power=2), what="")',
        'Unexpected keyword argument "power"',
    ),
    "a result of another type": (
        'v: list[str] = await group.each(lambda worker, _: worker(Worker.version), within_s=1.0, what="")',
        'No overload variant of "__call__" of "Handle" matches',
    ),
    "a method of another worker": (
        "Handle[Worker](0)(SpecialWorker.own)",
        'No overload variant of "__call__" of "Handle" matches',
    ),
}


@pytest.fixture(scope="module")
def mypy_output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output of mypy by the name of the call, from one run over all snippets."""
    folder = tmp_path_factory.mktemp("snippets")
    calls = list((RIGHT | {name: call for name, (call, _) in WRONG.items()}).items())
    for i, (_, call) in enumerate(calls):
        (folder / f"snippet_{i}.py").write_text(SNIPPET.replace("{call}", call))
    cache = folder / "cache"
    flags = [
        f"--config-file={ROOT / 'pyproject.toml'}",
        f"--cache-dir={cache}",
        "--no-error-summary",
        "--disable-error-code=empty-body",
    ]
    output, problems, _ = api.run([*flags, *(str(folder / f"snippet_{i}.py") for i in range(len(calls)))])
    assert problems == ""
    return {
        name: "\n".join(line for line in output.splitlines() if f"snippet_{i}.py" in line)
        for i, (name, _) in enumerate(calls)
    }


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_call_passes(mypy_output: dict[str, str], name: str) -> None:
    assert mypy_output[name] == ""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_an_error(mypy_output: dict[str, str], name: str) -> None:
    assert "error: " in mypy_output[name]
    assert WRONG[name][1] in mypy_output[name]
