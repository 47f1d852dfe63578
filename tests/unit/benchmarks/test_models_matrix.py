"""Matrix of architectures: kept results, page, and the reward of models that never answer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.models.__main__ import NAME, due, main, read_rows
from benchmarks.models.half_reward import half_reward
from benchmarks.models.models_page import report
from benchmarks.models.train_row import EXPORT_NATS, Outcome, first_and_last_line, judged
from benchmarks.models.zoo import ZOO
from demopsd_dist.data.records import Question

TRAINS = Outcome("llama", "trains", "end", None, (), 5.0, "abc", 2e-6, 1e-6, 0.0, 0.3)
REFUSED = Outcome("phi3_longrope", "refused", "dry run", "two | scales", ("model.tree_tokens=0",), 1.0, "abc")
CRASHED = Outcome("dbrx", "crashed", "engine", "no such kernel", (), 9.0, "abc")


def rows(*outcomes: Outcome) -> dict[str, dict]:
    return {outcome.name: asdict(outcome) for outcome in outcomes}


def test_the_page_counts_and_gives_reasons() -> None:
    text = "\n".join(report(rows(TRAINS, REFUSED, CRASHED)))
    assert "3 architectures: 1 train, 1 of them with differences of at most 0.0001 nats; 1 are refused" in text
    assert "| llama | trains | 2.0e-06 | 0.0e+00 | 3.0e-01 |" in text
    assert "| phi3_longrope | refused: dry run |  |  |  | `model.tree_tokens=0` two \\| scales | 1 | abc |" in text


def test_only_rows_without_a_good_result_are_measured_again() -> None:
    kept = rows(TRAINS, REFUSED, CRASHED)
    names = due(kept, [], again=False)
    assert "dbrx" in names
    assert {*names, "llama", "phi3_longrope"} == set(ZOO)
    assert "llama" not in names
    assert due(kept, ["llama"], again=False) == ["llama"]
    assert due(kept, [], again=True) == list(ZOO)


def test_results_are_read_back_and_an_unknown_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.json").write_text(json.dumps([asdict(TRAINS)]))
    assert read_rows(tmp_path)["llama"]["logp_diff"] == 2e-6
    with pytest.raises(SystemExit):
        main(["--only", "no_such_model"])


@pytest.mark.parametrize(("export", "moved"), [(2 * EXPORT_NATS, 0.3), (0.0, 0.0), (float("nan"), 0.3)])
def test_a_wrong_export_or_a_model_that_did_not_move_is_no_success(export: float, moved: float) -> None:
    assert judged({"export_diff": export, "moved": moved, "problems": []})["result"] == "crashed"
    assert judged({"export_diff": 0.0, "moved": 0.3, "problems": []})["result"] == "trains"
    assert judged({"export_diff": 0.0, "moved": 0.3, "problems": ["vLLM cannot load it"]})["result"] == "crashed"


def test_about_half_of_all_responses_are_right() -> None:
    question = Question("1", "1+1?", "2", "sums")
    rewards = [half_reward(f"response {number}", question) for number in range(400)]
    assert set(rewards) == {0.0, 1.0}
    assert 150 < sum(rewards) < 250


def test_a_traceback_is_shortened_to_its_first_and_last_line() -> None:
    assert first_and_last_line("rollout 0 failed on vLLM engine.\n  File x\nValueError: no") == (
        "rollout 0 failed on vLLM engine. ValueError: no"
    )


def test_the_zoo_has_forty_rows_by_name() -> None:
    assert len(ZOO) >= 40
    assert all(name == architecture.name for name, architecture in ZOO.items())
