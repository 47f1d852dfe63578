"""Experiments without training: their runs, the runs that are not repeated, and their tables."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.intervals import half_width
from benchmarks.experiment.dose_page import write_dose
from benchmarks.experiment.experiment_file import Arm, Experiment, Tuning, read_experiment
from benchmarks.experiment.experiment_page import write_report
from benchmarks.experiment.run_arms import ArmRun, ExperimentRunner, planned_runs, question_means, run_experiment, tune
from benchmarks.tasks.choose_tasks import VALIDATION_SEED
from demopsd_dist.config import load
from demopsd_dist.data.accuracy import AnswerGroup
from demopsd_dist.data.records import Question
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError, DemoPSDError

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))


class InstantRunner(ExperimentRunner):
    """A runner whose runs end at once: accuracy is highest at learning rate 4e-4, and mean alpha is 0.02."""

    def __init__(self, experiment: Experiment, out: Path) -> None:
        super().__init__(experiment, ROOT / "configs" / "demo.yaml", out)
        self.trained: list[ArmRun] = []

    def _train(self, run: ArmRun) -> None:
        self.trained.append(run)
        rate = float(next(w.partition("=")[2] for w in reversed(run.words) if "learning_rate" in w))
        summary = {"accuracy_after": {"average": 0.5 - abs(rate - 4e-4)}, "alpha_mean": 0.02}
        self.records.append(run.name, {"words": list(run.words), "summary": summary})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_has_valid_settings(path: Path, tmp_path: Path) -> None:
    experiment = read_experiment(path, [])
    base = path.parent / experiment.base
    runner = InstantRunner(experiment, tmp_path)
    best, words = tune(runner)
    assert set(words) == set(experiment.arms)
    for run in runner.trained:
        tuning = load(base, run.words)
        assert tuning.data.test != "minisci", "the test set chooses nothing"
        assert tuning.seed not in experiment.seeds
    if not experiment.tuning.learning_rates:
        assert not best
        assert any(word.startswith("learner.learning_rate=") for word in experiment.settings), "the same for all"
    tries = {arm: sum(r.name.startswith(f"tuning-{arm}-") for r in runner.trained) for arm in best}
    assert set(tries.values()) <= {len(experiment.tuning.learning_rates)}, "each arm has the same budget"
    for own in words.values():
        final = load(base, (*experiment.settings, *experiment.final.settings, *own))
        sources = (final.data.train, final.data.test)
        assert all(source == "minisci" or f"seed={VALIDATION_SEED}" not in str(source) for source in sources)


@pytest.mark.parametrize("parallel", [1, 2])
def test_after_a_failure_no_run_is_started_and_those_that_run_are_finished(parallel: int, tmp_path: Path) -> None:
    running = threading.Event()

    class Failing(InstantRunner):
        def _train(self, run: ArmRun) -> None:
            if run.name == "broken":
                assert parallel == 1 or running.wait(60)
                raise DemoPSDError("broken failed")
            running.set()
            if run.name == "beside":
                time.sleep(0.2)  # the failure comes first
            super()._train(run)

    names = ("broken", "beside", *(f"later-{i}" for i in range(5)))
    runs = [ArmRun(name, ("learner.learning_rate=4e-4",)) for name in names]
    runner = Failing(Experiment(parallel=parallel), tmp_path)
    with pytest.raises(DemoPSDError, match="broken failed"):
        runner.complete(runs)
    assert [run.name for run in runner.trained] == (["beside"] if parallel == 2 else [])
    assert list(runner.records.load()) == [run.name for run in runner.trained]


def test_controls_follow_from_the_arms_that_they_control(tmp_path: Path) -> None:
    _, words = tune(InstantRunner(read_experiment(ROOT / "configs/experiments/minisci.yaml", []), tmp_path))
    assert "demopsd.alpha_max=0.0200" in words["constant_alpha"]
    assert words["scaled_learning_rate"][-1] == "learner.learning_rate=0.000392"
    assert words["demopsd"][-1] == "learner.learning_rate=0.0004"


def test_settings_of_a_seed_are_those_of_all_its_arms(tmp_path: Path) -> None:
    experiment = Experiment(
        seeds=[0, 1],
        settings=["learner.learning_rate=4e-4"],
        seed_settings={1: ["learner.zero_stage=1"]},
        arms={"demopsd": Arm(), "sdpo": Arm(settings=["method=sdpo"])},
    )
    runs = planned_runs(experiment, {"demopsd": [], "sdpo": ["method=sdpo"]})
    with_it = {run.name for run in runs if "learner.zero_stage=1" in run.words}
    assert with_it == {"demopsd-seed1", "sdpo-seed1", "base-seed1"}
    assert len(runs) == 6


def test_a_recorded_run_is_not_run_again_and_not_taken_for_another(tmp_path: Path) -> None:
    experiment = read_experiment(ROOT / "configs/experiments/minisci.yaml", [])
    run = ArmRun("one", ("learner.learning_rate=4e-4",))
    first = InstantRunner(experiment, tmp_path)
    first.complete([run])
    second = InstantRunner(experiment, tmp_path)
    assert second.complete([run]) == first.complete([run])
    assert (len(first.trained), len(second.trained)) == (1, 0)
    with pytest.raises(ConfigError, match="was made with other settings"):
        second.complete([ArmRun("one", ("learner.learning_rate=2e-4",))])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("compared_with=nobody", "compared_with=nobody is not an arm: grpo,"),
        ("dose={nobody: 1}", "dose has nobody, which is not an arm: grpo,"),
        ("leaks_compared_with=nobody", "leaks_compared_with=nobody is not an arm: grpo,"),
        ("arms.grpo.learning_rate_of=nobody", "arm grpo refers to nobody"),
        ("sedes=[1]", "sedes"),
    ],
)
def test_a_wrong_experiment_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_experiment(ROOT / "configs/experiments/minisci.yaml", [word])


def record(seed: int, accuracy: float, **summary: Any) -> dict[str, Any]:
    def figure(value: float) -> dict[str, Any]:
        return {"average": value, "low": value, "high": value, "by_field": {"physics": value}}

    def split(value: float) -> dict[str, Any]:
        return {
            "mean": figure(value),
            "majority": figure(value),
            "passes": {"1": figure(value), "2": figure(value)},
            "best": figure(value),
            "entropy_nats": 0.1,
            "response_tokens_mean": 20.0,
            "unparsed_fraction": 0.0,
            "behaviour": {"mentions_solution": 0.0, "answers_first": 0.0, "unsupported": 0.0},
            "questions": 8,
            "samples": 2,
        }

    splits = {name: split(accuracy) for name in ("test", "ood", "early/test", "early/train")}
    curves = {"rollout/reward_mean": [0.1, 0.2], "policy/entropy_nats": [0.2, 0.1]}
    return {"summary": {"seed": seed, "wall_s": 1.0, "evaluation": splits, **summary}, "curves": curves}


def test_the_report_pairs_seeds_and_leaves_out_missing_values(tmp_path: Path) -> None:
    table = {
        "base": [record(seed, 0.3) for seed in (0, 1, 2)],
        "sdpo": [record(seed, 0.5 + seed / 10) for seed in (0, 1, 2)],
        "demopsd": [
            record(seed, 0.52 + seed / 10, teacher_leakage_nats=0.2, target_leakage_nats=0.1) for seed in (0, 1, 2)
        ],
    }
    experiment = Experiment(tuning=Tuning(learning_rates=[2e-4, 4e-4]))
    write_report(table, {"sdpo": "0.0002", "demopsd": "0.0004"}, experiment, tmp_path)
    text = (tmp_path / "seeds-0-1-2.md").read_text()
    assert "| sdpo | **-2.0 ± 0.0** | **-2.0 ± 0.0** | **-2.0 ± 0.0** | +0.0000 ± 0.0000 |" in text
    assert "| sdpo | 0.0002 | 60.0% ± 24.8 |" in text, "wide over seeds, narrow when paired by seed"
    rows = list(csv.DictReader((tmp_path / "seeds-0-1-2.csv").open()))
    assert len(rows) == 9
    assert {row["KL(q‖s) / KL(r‖s)"] for row in rows if row["arm"] == "demopsd"} == {"0.5"}
    assert {row["KL(q‖s) / KL(r‖s)"] for row in rows if row["arm"] == "sdpo"} == {""}
    assert (tmp_path / "seeds-0-1-2.png").stat().st_size > 10_000


def test_an_experiment_without_early_answers_or_a_second_split_has_a_report(tmp_path: Path) -> None:
    table = {arm: [record(seed, 0.3) for seed in (0, 1, 2)] for arm in ("base", "demopsd")}
    for records in table.values():
        for each in records:
            evaluation = each["summary"]["evaluation"]
            each["summary"]["evaluation"] = {"test": evaluation["test"]}
    write_report(table, {}, Experiment(), tmp_path)
    text = (tmp_path / "seeds-0-1-2.md").read_text()
    assert "| base | +0.0 ± 0.0 | +0.0 ± 0.0 | – | +0.0000 ± 0.0000 |" in text
    assert {row["ood mean@k"] for row in csv.DictReader((tmp_path / "seeds-0-1-2.csv").open())} == {""}


def test_half_width_is_student_t() -> None:
    assert half_width([0.0, 1.0]) == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert half_width([1.0]) == float("inf")
    assert half_width([float(i % 2) for i in range(40)]) == pytest.approx(2.023 * 0.5064 / 40**0.5, rel=2e-3)


def test_a_table_needs_the_records_that_choose_learning_rates(tmp_path: Path) -> None:
    experiment = read_experiment(ROOT / "configs/experiments/minisci.yaml", [])
    with pytest.raises(ConfigError, match=r"no record of tuning-grpo-0\.0001, which chooses a learning rate"):
        run_experiment(experiment, ROOT / "configs" / "demo.yaml", tmp_path, table_only=True)


def test_a_table_of_the_runs_so_far(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arms may have fewer seeds; differences are taken between runs of one seed."""
    experiment = read_experiment(ROOT / "configs/experiments/long_runs.yaml", [])
    base = ROOT / "configs" / "demo.yaml"
    with pytest.raises(ConfigError, match="has no record of these"):
        run_experiment(experiment, base, tmp_path, table_only=True)
    runner = InstantRunner(experiment, tmp_path)
    evaluations = [
        {"step": step, "split": "test", "mean": mean, "pass": 0.9} for step, mean in ((0, 0.3), (50, 0.6), (300, 0.4))
    ]
    for name, seed, accuracy in (("demopsd", 0, 0.5), ("demopsd", 1, 0.6), ("grpo", 1, 0.9)):
        words = [*experiment.settings, *experiment.arms[name].settings, f"seed={seed}"]
        row = record(seed, accuracy) | {"words": words, "evaluations": evaluations}
        runner.records.append(f"{name}-seed{seed}", row)
    run_experiment(experiment, base, tmp_path, table_only=True)
    assert "27 of 30 runs are missing: alpha_max_05-seed0, " in capsys.readouterr().out
    text = (tmp_path / "seeds-0-1.md").read_text()
    assert "Fewer seeds so far: grpo 1." in text
    assert "| grpo | +30.0 | +30.0 |" in text, "0.9 against 0.6, of seed 1"
    with (tmp_path / "seeds-0-1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test fall from it"] for row in rows] == ["0.2"] * 3
    assert (tmp_path / "seeds-0-1.png").stat().st_size > 10_000


def test_arms_of_one_seed_are_paired_by_question(tmp_path: Path) -> None:
    """Fields count once, as in mean@k: +0.5 and 0 in the small one, 0 in the large one."""
    table = {arm: [record(0, 0.3)] for arm in ("base", "sdpo", "demopsd")}
    rest = [["large", 0.5]] * 6
    table["demopsd"][0]["by_question"] = {"test": [["small", 0.0], ["small", 0.5], *rest]}
    table["sdpo"][0]["by_question"] = {"test": [["small", 0.5], ["small", 0.5], *rest]}
    write_report(table, {}, Experiment(), tmp_path)
    text = (tmp_path / "seeds-0.md").read_text()
    assert "| sdpo | +12.5 ± 30.6 | +0.0 | +0.0 | +0.0000 |" in text
    assert "| base | +0.0 | +0.0 | +0.0 | +0.0000 |" in text
    assert "inf" not in text
    assert "Of the 1 intervals" in text
    for arm in ("demopsd", "sdpo"):
        del table[arm][0]["by_question"]["test"][-1]
    write_report(table, {}, Experiment(), tmp_path)
    assert "paired by question" not in (tmp_path / "seeds-0.md").read_text(), "not all of the split's questions"
    several = {arm: [record(seed, 0.3) for seed in (0, 1)] for arm in ("base", "demopsd")}
    write_report(several, {}, Experiment(), tmp_path)
    assert "paired by question" not in (tmp_path / "seeds-0-1.md").read_text()


def test_an_arm_planned_with_fewer_seeds_is_not_missing_any(tmp_path: Path) -> None:
    table = {"demopsd": [record(0, 0.3), record(1, 0.3)], "half": [record(0, 0.3)], "sdpo": [record(0, 0.3)]}
    experiment = Experiment(arms={"demopsd": Arm(), "half": Arm(seeds=[0]), "sdpo": Arm()})
    write_report(table, {}, experiment, tmp_path)
    assert "Fewer seeds so far: sdpo 1." in (tmp_path / "seeds-0-1.md").read_text()


def test_the_means_of_questions_are_those_of_the_last_evaluation(tmp_path: Path) -> None:
    assert question_means(tmp_path, "test") == []
    folder = RunFolder(tmp_path).evaluations
    for step, rewards in ((0, [0.0, 0.0]), (100, [1.0, 0.0])):
        question = Question(f"q/{step}", "2+2?", "4", "sums")
        row = samples.evaluation_row(step, question, ["4", "5"], AnswerGroup("sums", rewards, ["4", "5"]))
        samples.write_evaluation(folder, step, "test", [row])
    assert question_means(tmp_path, "test") == [["sums", 0.5]]
    assert question_means(tmp_path, "ood") == []


def test_the_dose_has_the_seeds_that_all_its_arms_have(tmp_path: Path) -> None:
    table = {
        "demopsd": [record(seed, accuracy, alpha_mean=0.02) for seed, accuracy in ((0, 0.4), (1, 0.8))],
        "sdpo": [record(seed, accuracy) for seed, accuracy in ((0, 0.3), (1, 0.9))],
        "half": [record(0, 0.6, alpha_mean=0.07)],
    }
    write_dose(table, {"half": 0.5, "demopsd": 0.15, "sdpo": 0.0, "absent": 1.0}, tmp_path)
    rows = [line.split(" | ")[:4] for line in (tmp_path / "dose-seed-0.md").read_text().splitlines()[-3:]]
    assert rows == [
        ["| 0", "sdpo", "–", "30.0%"],
        ["| 0.15", "demopsd", "0.02", "40.0%"],
        ["| 0.5", "half", "0.07", "60.0%"],
    ]
    assert (tmp_path / "dose-seed-0.png").stat().st_size > 0
    (tmp_path / "dose-seed-0.md").unlink()
    write_dose(table, {"demopsd": 0.15, "absent": 1.0}, tmp_path)
    write_dose({"a": [record(0, 0.3)], "b": [record(1, 0.3)]}, {"a": 0.0, "b": 0.5}, tmp_path)
    assert not list(tmp_path.glob("dose*.md"))
