"""Prometheus endpoint with a run's metrics, and a Grafana dashboard of them.

Metrics that differ only in worker, stage or quantile are one metric with a label: `rollout/worker_3_tokens_per_s` is
`demopsd_rollout_worker_tokens_per_s{i="3"}`. `demopsd grafana` prints the dashboard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from demopsd_dist.run_record.metric_glossary import METRIC_GROUPS, find_metric
from demopsd_dist.util.errors import ConfigError

_PART = re.compile(r"_?\{(\w+)\}")
_WIDTH, _HEIGHT, _ACROSS = 8, 7, 3  # of a panel, in Grafana's units; panels in a row
_UNITS = {"s": "s", "fraction": "percentunit", "0 to 1": "percentunit"}  # other units are in the title


@cache
def exported(name: str) -> tuple[str, dict[str, str]]:
    """The Prometheus metric and its labels for a recorded name.

    Example: `exported("time/learn_s")` is `("demopsd_time_s", {"stage": "learn"})`.
    """
    metric = find_metric(name)
    labels = {} if metric is None else metric.labels(name)
    return _metric_name(name if metric is None else metric.name), labels


def _metric_name(name: str) -> str:
    return "demopsd_" + re.sub(r"\W", "_", _PART.sub("", name)).replace("__", "_").strip("_")


class Prometheus:
    """HTTP endpoint with the metrics, in the driver's process. Ray's own metrics are at Ray's endpoint."""

    def __init__(self, host: str, port: int, run: str) -> None:
        """Start to serve.

        Args:
            port: 0 selects a free port.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        self._registry, self._run = CollectorRegistry(), run
        self._gauges: dict[str, Any] = {}
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise ConfigError(
                f"sinks.prometheus={host}:{port}: nothing can listen there ({error.strerror}). Take another port."
            ) from None
        self.port = int(self._server.server_port)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in {**metrics, "step": float(step)}.items():
            exported_name, labels = exported(name)
            self._gauge(exported_name, name, labels).set(value)

    def _gauge(self, exported_name: str, name: str, labels: dict[str, str]) -> Any:
        from prometheus_client import Gauge

        if exported_name not in self._gauges:
            metric = find_metric(name)
            about = name if metric is None else f"{metric.meaning} ({metric.unit})"
            self._gauges[exported_name] = Gauge(exported_name, about, ["run", *labels], registry=self._registry)
        return self._gauges[exported_name].labels(run=self._run, **labels)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard: a row for each group of metrics, a panel for each metric, for the selected runs."""
    panels: list[dict[str, Any]] = []
    top = 0
    for group, (about, metrics) in METRIC_GROUPS.items():
        panels.append({"type": "row", "title": f"{group}: {about}", "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}})
        names = dict.fromkeys(_metric_name(metric.name) for metric in metrics)
        metric_by_name = {_metric_name(metric.name): metric for metric in reversed(metrics)}
        for index, name in enumerate(names):
            down, across = divmod(index, _ACROSS)
            metric = metric_by_name[name]
            legend = " ".join(["{{run}}", *(f"{{{{{part}}}}}" for part in _PART.findall(metric.name))])
            unit = _UNITS.get(metric.unit)
            panels.append(
                {
                    "type": "timeseries",
                    "title": name.removeprefix("demopsd_")
                    if unit
                    else f"{name.removeprefix('demopsd_')} ({metric.unit})",
                    "description": metric.meaning,
                    "datasource": {"type": "prometheus", "uid": "${source}"},
                    "fieldConfig": {"defaults": {"unit": unit or "short"}, "overrides": []},
                    "gridPos": {"x": across * _WIDTH, "y": top + 1 + down * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
                    "targets": [{"refId": "A", "expr": f'{name}{{run=~"$run"}}', "legendFormat": legend}],
                }
            )
        top += 1 + -(-len(names) // _ACROSS) * _HEIGHT
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "title": "DemoPSD",
        "uid": "demopsd",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "run",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${source}"},
                    "query": "label_values(demopsd_step, run)",
                    "multi": True,
                    "includeAll": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }
