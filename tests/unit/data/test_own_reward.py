"""A user's own reward may hang, die, print or start processes: the run goes on, or ends with a line that says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from demopsd_dist.config import Limits, RewardErrors, load
from demopsd_dist.data.examples import RewardedGroup, examples_from_rewards, reward_group
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import Reward, resolve_reward
from demopsd_dist.data.rewards.own_reward import OwnReward
from demopsd_dist.util.errors import ConfigError, RewardError
from tests.unit.run_record.sample_rows import prompt, rollout

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
QUESTION = Question(id="physics/7", text="A car at 3 m/s ...", answer="B", field="physics")
OWN = """
import ctypes, os, re, subprocess, sys, time

calls = 0

def reward(response, question):
    global calls
    calls += 1
    match response:
        case "sleep": time.sleep(600)
        case "loop":
            while True: pass
        case "regex": return float(bool(re.match("(a+)+$", "a" * 50 + "b")))
        case "children":
            subprocess.Popen(["sleep", "600.7"])
            time.sleep(600)
        case "exit": sys.exit("enough")
        case "die": os._exit(7)
        case "crash": ctypes.string_at(0)
        case "print": print("a line", flush=True)
        case "right": return 1.0
        case "calls": return calls / 10
        case "answer": return float(question == type(question)("physics/7", "A car at 3 m/s ...", "B", "physics"))
    return len(response) / 1e7
"""
IMPORTS = {
    "hangs": "import time; time.sleep(600)\n",
    "leaves": "import os; os._exit(3)\n",
    "exits": "raise SystemExit('no')\n",
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_module.py").write_text(OWN)
    for name, code in IMPORTS.items():
        (folder / f"own_{name}.py").write_text(code + "def reward(response, question): return 1.0\n")
    return folder


@pytest.fixture
def own(modules: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reward]:
    monkeypatch.syspath_prepend(modules)

    def make(reward_s: float = 20.0, errors: RewardErrors = RewardErrors.stop) -> Reward:
        return resolve_reward("own_module.reward", Limits(reward_s=reward_s), errors)

    return make


def process_of(reward: Reward) -> psutil.Process:
    assert isinstance(reward.function, OwnReward)
    return psutil.Process(reward.function._process.pid)


@pytest.mark.parametrize("how", ["sleep", "loop", "regex", "children"])
def test_one_that_hangs_is_ended_and_shows_the_sample(own: Callable[..., Reward], how: str) -> None:
    reward = own(reward_s=1.0)
    before = process_of(reward)
    started = time.monotonic()
    message = rf"reward=own_module.reward failed by giving no reward within limits.reward_s=1 s. Question 'physics/7'.*'{how}'"
    with pytest.raises(RewardError, match=message):
        reward(how, QUESTION)
    assert time.monotonic() - started < 10
    assert not before.is_running()
    if how == "children":
        slept = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "600.7"]]
        _, left = psutil.wait_procs(slept, timeout=10)
        assert left == [], "what it had started is ended too"
    assert reward("x" * 1000, QUESTION) == RewardResult(1e-4), "the next is marked, by a new process"
    assert process_of(reward).pid != before.pid


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("die", "failed by ending its process, exit code 7."),
        ("crash", "failed by ending its process, exit code -11."),
        ("exit", r"failed at own_module.py:\d+ with SystemExit: enough"),
        ("x" * 20_000_000, "with ValueError: a reward is a number from 0 to 1, not 2."),
    ],
    ids=lambda value: value[:5],
)
def test_one_that_ends_is_an_error_of_this_sample(own: Callable[..., Reward], how: str, message: str) -> None:
    reward = own(reward_s=60.0)
    with pytest.raises(RewardError, match=message):
        reward(how, QUESTION)
    assert reward("answer", QUESTION) == RewardResult(1.0)


def test_its_process_is_kept_and_what_it_prints_is_seen(
    own: Callable[..., Reward], capfd: pytest.CaptureFixture[str]
) -> None:
    reward = own()
    process = process_of(reward)
    assert reward("print", QUESTION) == RewardResult(5e-7)
    assert capfd.readouterr().out == "a line\n"
    assert reward("calls", QUESTION) == RewardResult(0.2)
    assert reward("calls", QUESTION) == RewardResult(0.3)
    assert reward("a\n\0 水 \ud800", QUESTION).reward > 0
    assert process_of(reward) == process
    del reward
    assert not process.is_running(), "nobody asks it any more"


def test_a_module_that_cannot_be_imported_in_time_is_refused(own: Callable[..., Reward]) -> None:
    for name, message in (
        ("hangs", r"importing it took longer than limits.start_s=1 s\."),
        ("leaves", r"importing it ended its process, exit code 3\."),
        ("exits", "importing own_exits failed with SystemExit: no"),
    ):
        with pytest.raises(ConfigError, match=f"reward=own_{name}.reward: {message}"):
            resolve_reward(f"own_{name}.reward", Limits(start_s=1.0 if name == "hangs" else 60.0))


def test_it_does_not_outlive_the_run(modules: Path) -> None:
    code = (
        "import os, signal, sys; from demopsd_dist.data.rewards import resolve_reward\n"
        "reward = resolve_reward('own_module.reward'); print(reward.function._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = os.pathsep.join([str(modules), str(DEMO.parents[1])])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(run.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(run.stdout)) or psutil.Process(int(run.stdout)).status() == psutil.STATUS_ZOMBIE


def marks_of(own: Callable[..., Reward], texts: list[str], errors: RewardErrors) -> RewardedGroup:
    asked = prompt("q")
    return reward_group([rollout(asked, i, text) for i, text in enumerate(texts)], own(reward_s=5.0, errors=errors))


def test_a_response_without_a_mark_is_left_out_of_its_group(own: Callable[..., Reward]) -> None:
    texts = ["x", "die", "right", "sleep", "xx"]
    with pytest.raises(RewardError, match="ending its process"):
        marks_of(own, texts, RewardErrors.stop)
    group = marks_of(own, texts, RewardErrors.drop)
    assert [rollout.sample for rollout in group.rollouts] == [0, 2, 4]
    assert [rollout.sample for rollout in group.unrewarded] == [1, 3]
    assert "exit code 7" in str(group.failures[0][1])
    assert "no reward within" in str(group.failures[1][1])
    assert group.successes == [group.index_of(2)] == [1]
    assert group.siblings(group.index_of(2), exclude_own_success=True) == []
    examples = examples_from_rewards([group], scaled=False, leave_out_silent=False).examples
    assert [example.rollout.sample for example in examples] == [0, 2, 4]
    nobody = marks_of(own, ["die", "die"], RewardErrors.drop)
    assert (nobody.rollouts, nobody.has_signal, nobody.successes, nobody.prompt.id) == ([], False, [], "q")
    assert examples_from_rewards([nobody], scaled=True, leave_out_silent=False).examples == []


def test_dropping_is_for_rewards_that_can_fail() -> None:
    with pytest.raises(ConfigError, match="reward_errors=drop has no effect with reward=answer, which never fails"):
        load(DEMO, ["reward_errors=drop"])
    with pytest.raises(ConfigError, match=r"limits.reward_s=0.0 must be greater than 0"):
        load(DEMO, ["limits.reward_s=0"])
    assert load(DEMO, ["reward_errors=drop", "reward=my.own"]).limits.reward_s == 60
