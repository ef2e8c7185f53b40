"""The dashboard and the alerts ask for metrics that the server has, by their real names, in valid PromQL."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from loadmaster.server.metrics import ONLY_HERE, SHARED, Declared
from tools.dashboard import FILE, dashboard

ALERTS = Path("deploy/prometheus/alerts.yaml")
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]


def samples(prefix: str) -> dict[str, set[str]]:
    """Return the names of all samples, with their labels."""
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for declared, start, common in [
        *((d, prefix, {"model_name", "engine"}) for d in SHARED),
        *((d, "loadmaster", set()) for d in ONLY_HERE),
    ]:
        for ending, more in endings(declared):
            found[f"{start}:{declared.name}{ending}"] = {"instance", "job", *common, *declared.labels, *more}
    return found


def endings(declared: Declared) -> list[tuple[str, set[str]]]:
    if declared.kind == "histogram":
        return [("_bucket", {"le"}), ("_sum", set()), ("_count", set())]
    return [("_total" if declared.kind == "counter" else "", set())]


def expressions(prefix: str) -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            written = target["expr"].replace("${prefix}", prefix).replace("$__rate_interval", "5m")
            yield re.sub(r"\$\w+", ".*", written)


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("vector_selector", "lhs", "rhs", "expr"):
        if (inner := getattr(node, name, None)) is not None and not isinstance(inner, (str, int, float)):
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or ():
        yield from selectors(inner)


def check(expression: str, prefix: str) -> int:
    """Parse a query, and check its metrics and their labels. Return how many it names."""
    known = samples(prefix)
    found = list(selectors(promql_parser.parse(expression)))
    for selector in found:
        assert selector.name in known, expression
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[selector.name], expression
    return len(found)


@pytest.mark.parametrize("prefix", ["loadmaster", "vllm"])
def test_the_dashboard_asks_for_metrics_that_exist(prefix: str) -> None:
    queries = list(expressions(prefix))
    assert len(queries) > 30
    for query in queries:
        assert check(query, prefix) >= 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert check(rule["expr"], "loadmaster") == rule["expr"].count("loadmaster:") + rule["expr"].count("up{")
    assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)


def test_alerts_whose_metrics_change_with_the_prefix_are_marked() -> None:
    shared = {name for name in samples("vllm") if name.startswith("vllm:")}
    for rule in RULES:
        names = set(re.findall(r"loadmaster:(\w+)", rule["expr"]))
        is_marked = f"alert: {rule['alert']} # prefix" in ALERTS.read_text()
        assert is_marked == bool({f"vllm:{name}" for name in names} & shared), rule["alert"]


def test_a_query_with_a_wrong_name_or_label_does_not_pass() -> None:
    for wrong in ("loadmaster:num_requests_runing", 'loadmaster:ready{rank="0"}', "rate(loadmaster:nothing_total[5m])"):
        with pytest.raises(AssertionError):
            check(wrong, "loadmaster")
    with pytest.raises(ValueError):
        check("rat(loadmaster:ready[5m])", "loadmaster")


def test_the_dashboards_file_is_up_to_date() -> None:
    assert json.loads(FILE.read_text()) == dashboard(), "run python -m tools.dashboard"
