"""Writes the Grafana dashboard, ``deploy/grafana/loadmaster.json``: ``python -m tools.dashboard``.

Queries name metrics as ``$prefix:name``: Grafana's variable ``prefix`` is what the server was given as ``--metrics-prefix``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path("deploy/grafana/loadmaster.json")

SERVER = 'instance=~"$instance"'
BY_MODEL = f'{SERVER}, model_name=~"$model"'

Query = tuple[str, str]
"""A PromQL expression, and the legend of its lines."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: its lines, their unit, and what to look for."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str
    stacked: bool = False


def quantiles(metric: str) -> tuple[Query, ...]:
    """Return the median and the 95th and 99th percentile of a histogram."""
    rate = f"sum by (le) (rate(${{prefix}}:{metric}_bucket{{{BY_MODEL}}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {rate})", f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99))


def rate(metric: str, by: str = "") -> str:
    """Return how much all servers count a second, by a label if one is given."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate(${{prefix}}:{metric}_total{{{BY_MODEL}}}[$__rate_interval]))"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Requests",
        (
            Panel(
                "Requests by outcome",
                "reqps",
                (
                    (
                        f"sum by (outcome) (rate(loadmaster:http_requests_total{{{SERVER}}}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                ),
                "Everything but finished deserves a look; cancelled means that clients left.",
                stacked=True,
            ),
            Panel(
                "Running and waiting",
                "short",
                (
                    (f"sum (${{prefix}}:num_requests_running{{{BY_MODEL}}})", "running"),
                    (f"sum (${{prefix}}:num_requests_waiting{{{BY_MODEL}}})", "waiting"),
                ),
                "Requests that wait all the time need more servers, or a larger KV cache.",
            ),
            Panel(
                "Answers by reason",
                "reqps",
                ((rate("request_success", "finished_reason"), "{{finished_reason}}"),),
                "length: max_tokens, or the model's length, ended the answer.",
                stacked=True,
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel("Time to first token", "s", quantiles("time_to_first_token_seconds"), "Queue and prompt together."),
            Panel(
                "Time between tokens", "s", quantiles("inter_token_latency_seconds"), "What readers of a stream notice."
            ),
            Panel(
                "Whole requests", "s", quantiles("e2e_request_latency_seconds"), "From the request to the last token."
            ),
            Panel(
                "Queue", "s", quantiles("request_queue_time_seconds"), "How long requests wait for their first batch."
            ),
            Panel(
                "Prompts", "s", quantiles("request_prefill_time_seconds"), "From the first batch to the first token."
            ),
            Panel("Decoding", "s", quantiles("request_decode_time_seconds"), "From the first token to the last."),
        ),
    ),
    (
        "Tokens and cache",
        (
            Panel(
                "Tokens a second",
                "short",
                (
                    (rate("prompt_tokens"), "prompt"),
                    (rate("prompt_tokens_cached"), "of them cached"),
                    (rate("generation_tokens"), "generated"),
                ),
                "The throughput of all servers.",
            ),
            Panel(
                "KV cache",
                "percentunit",
                ((f"${{prefix}}:kv_cache_usage_perc{{{BY_MODEL}}}", "{{instance}}"),),
                "Near 100 % requests wait, or give up their pages (preemptions).",
            ),
            Panel(
                "Cache hits",
                "percentunit",
                ((f"{rate('prefix_cache_hits')} / {rate('prefix_cache_queries')}", "hits"),),
                "The share of prompt tokens that were in the cache.",
            ),
            Panel("Preemptions", "ops", ((rate("num_preemptions"), "preemptions"),), "Each computes a request again."),
            Panel(
                "Drafts that were right",
                "percentunit",
                ((f"{rate('spec_decode_num_accepted_tokens')} / {rate('spec_decode_num_draft_tokens')}", "accepted"),),
                "Empty without a draft model.",
            ),
            Panel(
                "Lengths",
                "short",
                (quantiles("request_prompt_tokens")[1], quantiles("request_generation_tokens")[1]),
                "95th percentile of prompts (first line) and answers, in tokens.",
            ),
        ),
    ),
    (
        "Stages",
        (
            Panel(
                "Busy share of each rank",
                "percentunit",
                (
                    (
                        f'rate(loadmaster:rank_seconds_total{{{SERVER}, state="busy"}}[$__rate_interval])',
                        "{{instance}} rank {{rank}} (stage {{stage}})",
                    ),
                ),
                "A stage that is busy while others wait has too many layers.",
            ),
            Panel(
                "Waiting for the previous stage",
                "percentunit",
                (
                    (
                        f'rate(loadmaster:rank_seconds_total{{{SERVER}, state="input"}}[$__rate_interval])',
                        "{{instance}} rank {{rank}} (stage {{stage}})",
                    ),
                ),
                "The rest of the time a rank waits for the engine: there are too few requests to keep it busy.",
            ),
            Panel(
                "Loading",
                "percentunit",
                (
                    (
                        f"sum by (instance) (loadmaster:load_bytes{{{SERVER}}}) / "
                        f"sum by (instance) (loadmaster:load_total_bytes{{{SERVER}}})",
                        "{{instance}}",
                    ),
                ),
                "The share of the weights that is loaded.",
            ),
        ),
    ),
)

WIDTH, HEIGHT, COLUMNS = 8, 8, 3


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 10, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(65 + i), "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        grid = {"x": 0, "y": y, "w": WIDTH * COLUMNS, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        )
        y += 1
        for i, panel in enumerate(row):
            panels.append(_panel(len(panels) + 1, panel, i % COLUMNS * WIDTH, y + i // COLUMNS * HEIGHT))
        y += -(-len(row) // COLUMNS) * HEIGHT
    return panels


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    prefixes = [{"text": p, "value": p, "selected": p == "loadmaster"} for p in ("loadmaster", "vllm")]
    return {
        "uid": "loadmaster",
        "title": "Loadmaster",
        "tags": ["loadmaster", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                },
                {
                    "name": "prefix",
                    "label": "--metrics-prefix",
                    "type": "custom",
                    "query": "loadmaster,vllm",
                    "options": prefixes,
                    "current": prefixes[0],
                },
                _variable("instance", "Server", "label_values(loadmaster:build_info, instance)"),
                _variable("model", "Model", "label_values(loadmaster:model_info, model_name)"),
            ]
        },
        "panels": _panels(),
    }


def main() -> None:
    """Write the file."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
