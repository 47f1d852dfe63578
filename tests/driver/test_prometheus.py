"""What Prometheus fetches from a run is what the run records, and the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from demopsd_dist.run_record import metric_glossary, prometheus
from demopsd_dist.run_record.prometheus import Prometheus, exported
from demopsd_dist.util.errors import ConfigError
from launch import grafana


def fetched(sink: Prometheus) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_figures_are_fetched_under_their_names() -> None:
    sink = Prometheus("127.0.0.1", 0, run="demo")
    try:
        sink.write(3, {"rollout/reward_mean": 0.25, "rollout/worker_1_tokens_per_s": 70.0, "time/learn_s": 2.0})
        sink.write(4, {"rollout/reward_mean": 0.5})
        found = fetched(sink)
    finally:
        sink.close()
    for line in (
        'demopsd_step{run="demo"} 4.0',
        'demopsd_rollout_reward_mean{run="demo"} 0.5',
        'demopsd_rollout_worker_tokens_per_s{i="1",run="demo"} 70.0',
        'demopsd_time_s{run="demo",stage="learn"} 2.0',
        "# HELP demopsd_rollout_reward_mean mean reward of all responses (0 to 1)",
    ):
        assert line in found
    with pytest.raises(OSError, match="refused"):
        fetched(sink)


def test_a_port_that_is_taken_is_named() -> None:
    first = Prometheus("127.0.0.1", 0, run="first")
    try:
        with pytest.raises(ConfigError, match=rf"sinks.prometheus=127.0.0.1:{first.port}: nothing can listen there"):
            Prometheus("127.0.0.1", first.port, run="second")
    finally:
        first.close()


def test_names_do_not_collide_but_for_labels() -> None:
    """A metric of its own for each entry of the table, or the same with other labels."""
    quantiles = {"{quantile}": "p50", "{i}": "0", "{stage}": "learn"}
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for metric in metric_glossary.all_metrics():
        name = metric.name
        for part, value in quantiles.items():
            name = name.replace(part, value)
        key = (exported(name)[0], tuple(exported(name)[1]))
        assert found.setdefault(key, metric.name) == metric.name
    by_name: dict[str, set[tuple[str, ...]]] = {}
    for name, labels in found:
        by_name.setdefault(name, set()).add(labels)
    assert {name: labels for name, labels in by_name.items() if len(labels) > 1} == {}, "one set of labels a metric"


def test_the_dashboard_has_every_metric_of_the_glossary(capsys: pytest.CaptureFixture[str]) -> None:
    """Dashboard as `demopsd grafana` prints it."""
    assert grafana.main([]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == prometheus.dashboard()
    panels = [panel for panel in printed["panels"] if panel["type"] == "timeseries"]
    asked = {re.match(r"\w+", panel["targets"][0]["expr"])[0] for panel in panels}  # type: ignore[index]
    assert asked == {prometheus._metric_name(metric.name) for metric in metric_glossary.all_metrics()}
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(places)) == len(places)
