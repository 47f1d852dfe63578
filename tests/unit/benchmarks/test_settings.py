"""Steps timed with other settings: what is compared, and what the page says."""

from __future__ import annotations

import pytest

from benchmarks.settings import TimedVariant, page, summary


def step(seconds: float, share: float | None = None) -> dict[str, float]:
    row = {"perf/step_s": seconds, "rollout/tokens": 100.0, "time/learn_s": seconds / 2}
    return row if share is None else row | {"perf/learn_utilisation": share}


SLOW = [[step(4.0), step(4.0), step(40.0)], [step(8.0), step(8.0), step(8.0)]]
FAST = [[step(2.0, 0.5), step(2.0, 0.5), step(2.0, 0.5)], [step(2.0, 0.4), step(3.0, 0.4), step(2.0, 0.4)]]


def test_a_summary_has_medians_of_all_steps_and_of_each_round() -> None:
    result = summary(SLOW)
    assert (result["step_s"], result["rounds_s"], result["steps"]) == (8.0, [4.0, 8.0], 6)
    assert result["tokens_per_s"] == pytest.approx(600 / 72)
    assert result["learn_s"] == 4.0
    assert (result["score_s"], result["learn_utilisation"]) == (0.0, None), "it was not measured"
    assert summary(FAST)["learn_utilisation"] == pytest.approx(0.45)


def test_the_page_compares_with_the_first_variant_round_by_round() -> None:
    variants = [TimedVariant("before", ("model.precision=float32",)), TimedVariant("after")]
    lines = page("python -m benchmarks.settings x.yaml", variants, {"before": SLOW, "after": FAST})
    assert "| before | `model.precision=float32` | 8.00 | 1.00 (1.00, 1.00) | 8.3 |" in lines[8]
    assert lines[9].startswith("| after | – | 2.00 | 0.25 (0.50, 0.25) | 46.2 |")
    assert lines[-1] == "| after | – | – | – | 45% |"
