"""A user's own reward that hangs, dies, prints or starts processes: the run continues, or ends with a clear line."""

from __future__ import annotations

import gc
import os
import signal
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
import ctypes, os, re, signal, subprocess, sys, time

calls = 0

def reward(response, question):
    global calls
    calls += 1
    match response:
        case "sleep": time.sleep(600)
        case "loop":
            while True: pass
        case "deaf":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
            while True: pass
        case "regex": return float(bool(re.match("(a+)+$", "a" * 50 + "b")))
        case "children":
            subprocess.Popen(["sleep", "600.7"])
            time.sleep(600)
        case "child": subprocess.Popen(["sleep", "600.7"])
        case "orphan":
            subprocess.Popen(["sleep", "600.7"])
            os._exit(7)
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
    return psutil.Process(reward.function.pid)


def children_left() -> list[psutil.Process]:
    """Children of a reward that have not ended within 10 seconds."""
    children = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "600.7"]]
    return psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.parametrize("how", ["sleep", "loop", "deaf", "regex", "children"])
def test_a_hung_reward_is_ended_and_the_error_shows_the_sample(own: Callable[..., Reward], how: str) -> None:
    reward = own(reward_s=1.0)
    before = process_of(reward)
    started = time.monotonic()
    message = f"failed by giving no reward within limits.reward_s=1 s. Question 'physics/7'.*'{how}'"
    with pytest.raises(RewardError, match=f"reward=own_module.reward {message}"):
        reward(how, QUESTION)
    assert time.monotonic() - started < 10
    assert not before.is_running()
    if how == "children":
        assert children_left() == []
    assert reward("x" * 1000, QUESTION) == RewardResult(1e-4), "a new process rewards the next response"
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
def test_a_reward_that_ends_its_process_is_an_error_of_this_sample(
    own: Callable[..., Reward], how: str, message: str
) -> None:
    reward = own(reward_s=60.0)
    with pytest.raises(RewardError, match=message):
        reward(how, QUESTION)
    assert reward("answer", QUESTION) == RewardResult(1.0)


def test_children_end_with_a_reward_that_crashes_or_is_no_longer_used(own: Callable[..., Reward]) -> None:
    reward = own()
    with pytest.raises(RewardError, match=r"ending its process, exit code 7\."):
        reward("orphan", QUESTION)
    assert children_left() == []
    assert reward("child", QUESTION) == RewardResult(5e-7)
    del reward
    assert children_left() == []


def test_the_process_serves_many_calls_and_its_output_is_visible(
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
    assert not process.is_running(), "it ends with its Reward"


def test_a_module_that_cannot_be_imported_in_time_is_refused(own: Callable[..., Reward]) -> None:
    for name, message in (
        ("hangs", r"importing it took longer than limits.start_s=1 s\."),
        ("leaves", r"importing it ended its process, exit code 3\."),
        ("exits", "importing own_exits failed with SystemExit: no"),
    ):
        with pytest.raises(ConfigError, match=f"reward=own_{name}.reward: {message}"):
            resolve_reward(f"own_{name}.reward", Limits(start_s=1.0 if name == "hangs" else 60.0))


def test_the_process_ends_with_a_killed_run(modules: Path) -> None:
    code = (
        "import os, signal, sys; from demopsd_dist.data.rewards import resolve_reward\n"
        "reward = resolve_reward('own_module.reward'); print(reward.function.pid, flush=True)\n"
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


def rewarded_group(own: Callable[..., Reward], texts: list[str], errors: RewardErrors) -> RewardedGroup:
    question = prompt("q")
    return reward_group([rollout(question, i, text) for i, text in enumerate(texts)], own(reward_s=5.0, errors=errors))


def test_a_response_without_a_reward_is_left_out_of_its_group(own: Callable[..., Reward]) -> None:
    texts = ["x", "die", "right", "sleep", "xx"]
    with pytest.raises(RewardError, match="ending its process"):
        rewarded_group(own, texts, RewardErrors.stop)
    group = rewarded_group(own, texts, RewardErrors.drop)
    assert [rollout.sample for rollout in group.rollouts] == [0, 2, 4]
    assert [rollout.sample for rollout in group.unrewarded] == [1, 3]
    assert "exit code 7" in str(group.failures[0][1])
    assert "no reward within" in str(group.failures[1][1])
    assert group.successes == [group.index_of(2)] == [1]
    assert group.siblings(group.index_of(2), exclude_own_success=True) == []
    examples = examples_from_rewards([group], scaled=False, drop_zero_advantage=False).examples
    assert [example.rollout.sample for example in examples] == [0, 2, 4]
    empty = rewarded_group(own, ["die", "die"], RewardErrors.drop)
    assert (empty.rollouts, empty.has_signal, empty.successes, empty.prompt.id) == ([], False, [], "q")
    assert examples_from_rewards([empty], scaled=True, drop_zero_advantage=False).examples == []


def test_dropping_is_for_rewards_that_can_fail() -> None:
    with pytest.raises(ConfigError, match="reward_errors=drop has no effect with reward=answer, which never fails"):
        load(DEMO, ["reward_errors=drop"])
    with pytest.raises(ConfigError, match=r"limits.reward_s=0.0 must be greater than 0"):
        load(DEMO, ["limits.reward_s=0"])
    assert load(DEMO, ["reward_errors=drop", "reward=my.own"]).limits.reward_s == 60


def test_an_interrupt_ends_the_call_and_later_rewards_are_those_of_their_own_responses(
    own: Callable[..., Reward],
) -> None:
    reward = own(errors=RewardErrors.drop)
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # an interrupt during a callback of the collector is lost
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            reward.result_of("sleep", QUESTION)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        gc.enable()
    assert reward("right", QUESTION) == RewardResult(1.0)
    assert reward("x" * 1000, QUESTION) == RewardResult(1e-4)
