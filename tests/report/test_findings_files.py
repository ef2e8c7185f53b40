"""Findings for machines: what GitHub requires of SARIF, and what CI servers read in JUnit XML."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from loadmaster.catalogue import SECTIONS
from loadmaster.findings import Finding
from loadmaster.report.json import dumps
from loadmaster.report.junit import junit_xml
from loadmaster.report.sarif import sarif_object

FINDINGS = (
    Finding(
        "shard-missing", "error", "it is <gone> & lost\x1b", file="model 1.safetensors", hint="fetch it", ranks=(0, 1)
    ),
    Finding("tensor-missing", "error", "no shard holds it", tensor="model.layers.1.q.weight"),
    Finding("dtype-noted", "note", "stored as F32", tensor="model.norm.weight"),
)


def test_sarif_has_what_github_requires() -> None:
    log = json.loads(dumps(sarif_object(FINDINGS, "0.1.0")))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["shard-missing", "tensor-missing", "dtype-noted"]
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in rules)
    for finding, result in zip(FINDINGS, run["results"], strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        assert result["level"] == finding.severity
        assert finding.message in result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["region"]["startLine"] == 1
        assert place["artifactLocation"]["uri"] in ("model%201.safetensors", "config.json")
        assert len(result["partialFingerprints"]["loadmaster/v1"]) == 64
    assert run["results"][1]["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "model.layers.1.q.weight"}]


def test_sarif_without_findings_closes_those_of_earlier_runs() -> None:
    (run,) = sarif_object((), "0.1.0")["runs"]
    assert (run["results"], run["tool"]["driver"]["rules"]) == ([], [])


def test_junit_has_a_test_for_each_error_and_each_sound_section() -> None:
    root = ElementTree.fromstring(junit_xml(FINDINGS, "loadmaster plan glm", 1.5, {}))
    (suite,) = root
    cases = list(suite)
    assert (suite.get("tests"), suite.get("failures"), suite.get("time")) == (str(len(cases)), "2", "1.500")
    failed = [case for case in cases if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == [
        "shard-missing: model 1.safetensors",
        "tensor-missing: model.layers.1.q.weight",
    ]
    failure = failed[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "it is <gone> & lost�"
    assert "ranks: 0-1\nhint: fetch it" in str(failure.text)
    assert {case.get("classname") for case in cases} == set(SECTIONS)
    (noted,) = [case for case in cases if case.find("system-out") is not None]
    assert "note dtype-noted: model.norm.weight" in str(noted.findtext("system-out"))


def test_what_was_not_checked_is_skipped_and_not_sound() -> None:
    why = {"Payload": "a plan reads headers alone", "Files": "not said of what has findings"}
    (suite,) = ElementTree.fromstring(junit_xml(FINDINGS[:1], "glm", 0.1, why))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (str(len(SECTIONS)), "1", "1")
    (skipped,) = [case for case in suite if case.find("skipped") is not None]
    assert (skipped.get("classname"), skipped.get("name")) == ("Payload", "Payload: not checked")
