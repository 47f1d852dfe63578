"""The glossary of metrics: unique names, and the page that is generated from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from demopsd_dist.run_record import metric_glossary

ROOT = Path(__file__).parents[3]


def test_the_page_is_up_to_date() -> None:
    """If not: python -m demopsd_dist.run_record.metric_glossary > docs/metrics.md"""
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metric_glossary.page()


def test_each_name_is_unique_and_in_its_group() -> None:
    for group, (_, table) in metric_glossary.METRIC_GROUPS.items():
        assert all(metric.name.startswith(f"{group}/") for metric in table)
    for metric in metric_glossary.all_metrics():
        if "{" not in metric.name:
            assert [other.name for other in metric_glossary.all_metrics() if other.matches(metric.name)] == [
                metric.name
            ]


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("rollout/worker_12_tokens_per_s", "rollout/worker_{i}_tokens_per_s"),
        ("demopsd/disagreement_p95_nats", "demopsd/disagreement_{quantile}_nats"),
        ("demopsd/disagreement_mean_nats", "demopsd/disagreement_mean_nats"),
        ("time/publish_weights_s", "time/{stage}_s"),
    ],
)
def test_a_recorded_name_has_its_entry(name: str, entry: str) -> None:
    metric = metric_glossary.find_metric(name)
    assert metric is not None
    assert metric.name == entry


def test_an_unknown_name_has_none() -> None:
    assert metric_glossary.find_metric("demopsd/gamma_mean") is None
