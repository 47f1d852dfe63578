"""Several training sets by weight: their records, draws, refusals and digests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demopsd_dist.config import Config, load
from demopsd_dist.data.mixture import MixedPrompts
from demopsd_dist.data.records import Prompt, Question
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.run_inputs import input_digests
from demopsd_dist.util.errors import DataError
from launch._task import build_task

DEMO = Path(__file__).parents[4] / "configs" / "demo.yaml"
SMALL = ["data.minisci_train_size=8", "data.minisci_test_size=8", "rollout.prompts_per_step=4"]
WEIGHTS = {"a": 6.0, "b": 3.0, "c": 1.0}


def prompts(**sizes: int) -> dict[str, list[Prompt]]:
    tokens = np.zeros(1, dtype=np.int32)
    return {
        name: [Prompt(Question(f"{name}/{i}", "?", "1", name), tokens) for i in range(size)]
        for name, size in sizes.items()
    }


def mixed(**sizes: int) -> MixedPrompts:
    return MixedPrompts(prompts(**sizes), WEIGHTS)


def ids(drawn: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in drawn]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_each_set_has_its_share_after_any_number_of_steps(seed: int) -> None:
    data = mixed(a=50, b=500, c=7)
    counts: Counter[str] = Counter()
    for step in range(60):
        counts.update(data.set_of(prompt) for prompt in data.of_step(seed, 8, step))
        for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            assert abs(counts[name] - share * 8 * (step + 1)) < 4


def test_draws_follow_from_seed_and_step_alone() -> None:
    data, again = mixed(a=50, b=500, c=20), mixed(a=50, b=500, c=20)
    steps = [ids(data.of_step(3, 8, step)) for step in range(20)]
    assert ids(again.of_step(3, 8, 19)) == steps[19], "without the steps before it"
    assert [ids(data.of_step(4, 8, step)) for step in range(20)] != steps
    assert sorted(ids(data.of_step(3, 16, 0))) == sorted(steps[0] + steps[1]), "other steps, the same order"


def test_an_epoch_of_a_set_has_each_of_its_questions_once() -> None:
    data = mixed(a=12, b=500, c=20)
    drawn = [prompt.id for step in range(5) for prompt in data.of_step(0, 4, step) if prompt.id[0] == "a"]
    assert len(set(drawn[:12])) == 12
    orders = [data.of_step(0, 12, step) for step in range(8)]
    of_a = [prompt.id for step in orders for prompt in step if prompt.id[0] == "a"]
    assert of_a[:12] != of_a[12:24]


@pytest.mark.parametrize("sizes", [{"a": 5, "b": 3, "c": 1}, {"a": 3, "b": 20, "c": 1}])
def test_the_questions_of_a_step_differ(sizes: dict[str, int]) -> None:
    data = mixed(**sizes)
    for step in range(50):
        drawn = ids(data.of_step(1, 8, step))
        assert len(set(drawn)) == len(drawn) == 8
        further = ids(data.more(1, step, set(drawn), 100))
        assert len(further) == len(data) - 8
        assert not set(further) & set(drawn)


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def two(tmp_path: Path) -> str:
    write(tmp_path / "sums.jsonl", *({"prompt": f"{i}+1?", "answer": i + 1} for i in range(20)))
    options = ["oxygen", "nitrogen"]
    write(tmp_path / "air.jsonl", *({"question": f"{i}?", "choices": options, "answer": 1} for i in range(10)))
    return f"data.train=[{{path: {tmp_path}/sums.jsonl, weight: 3, suffix: ' Quick!'}}, {{path: {tmp_path}/air.jsonl}}]"


def config(*words: str) -> Config:
    return load(DEMO, [*SMALL, "model.system_role=fold", *words])


def test_records_of_all_sets_with_their_names(two: str, tmp_path: Path) -> None:
    data = load_data(config(two).data)
    train = data.splits["train"]
    assert [question.id for question in train.questions[:2]] == ["sums/1", "sums/2"]
    assert {question.field for question in train.questions} == {"sums", "air"}
    assert train.questions[0].text == "0+1? Quick!"
    assert train.questions[20].answer == "B"
    assert train.places["air/3"] == f"data.train={tmp_path}/air.jsonl, line 3"
    assert data.notes()[:2] == [
        f"train set sums: 20 records of {tmp_path}/sums.jsonl, weight 3: 75.0% of the questions drawn",
        f"train set air: 10 records of {tmp_path}/air.jsonl, weight 1: 25.0% of the questions drawn",
    ]


def test_a_held_out_part_has_questions_of_all_sets(two: str) -> None:
    data = load_data(config(two, "data.test=split", "data.test_fraction=0.4", "data.ood=null").data)
    assert {question.field for question in data.splits["test"].questions} == {"sums", "air"}
    assert len(data.splits["test"].questions) == 12


def test_the_digest_of_the_inputs_has_every_set(two: str, tmp_path: Path) -> None:
    before = input_digests(load_data(config(two).data).questions, MODEL_DIR)["data.train"]
    write(tmp_path / "air.jsonl", *({"question": f"{i}?", "choices": ["x", "y"], "answer": 1} for i in range(10)))
    assert input_digests(load_data(config(two).data).questions, MODEL_DIR)["data.train"] != before


def test_a_task_draws_by_weight(two: str) -> None:
    cfg = config(two)
    task, _ = build_task(cfg, MODEL_DIR, load_data(cfg.data).questions)
    assert isinstance(task.train, MixedPrompts)
    drawn = [prompt.question.field for step in range(20) for prompt in task.train.of_step(0, 4, step)]
    assert 58 <= drawn.count("sums") <= 62
    plain = config(f"data.train={two.partition('path: ')[2].partition(',')[0]}")
    assert not isinstance(build_task(plain, MODEL_DIR, load_data(plain.data).questions)[0].train, MixedPrompts)


def test_a_set_that_cannot_give_its_share_is_refused(two: str, tmp_path: Path) -> None:
    cfg = config(two, "rollout.prompts_per_step=30", "data.test=minisci")
    with pytest.raises(
        DataError, match=r"sums.jsonl has 20 usable questions, and 22.5 of the rollout.prompts_per_step"
    ):
        build_task(cfg, MODEL_DIR, load_data(cfg.data).questions)
    (tmp_path / "air.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"data.train=.*air.jsonl holds no record"):
        load_data(config(two).data)
    write(tmp_path / "air.jsonl", {"question": "Air?", "choices": ["x", "x"], "answer": 1})
    with pytest.raises(
        DataError, match=r"data.train\[1\].path=.*air.jsonl: none of 1 records is left: two options have"
    ):
        load_data(config(two).data)
    (tmp_path / "air.jsonl").unlink()
    with pytest.raises(DataError, match=r"air.jsonl: there is no such file"):
        load_data(config(two).data)
