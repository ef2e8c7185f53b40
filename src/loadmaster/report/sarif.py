"""Findings as SARIF 2.1.0, which code scanning (GitHub, Azure DevOps) and editors show at the file that they are about.

The format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; what GitHub requires of it:
https://docs.github.com/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from loadmaster.catalogue import CATALOGUE
from loadmaster.findings import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif_object(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """Return a SARIF log of findings, made by ``version`` of the package.

    Files are relative to the checkpoint's folder. A finding that is about no file is put at config.json: GitHub needs a file.
    """
    codes = list(dict.fromkeys(f.code for f in findings))
    driver = {
        "name": "loadmaster",
        "version": version,
        "semanticVersion": version,
        "informationUri": "https://pypi.org/project/loadmaster/",
        "rules": [_rule(code) for code in codes],
    }
    results = [_result(f, codes.index(f.code)) for f in findings]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(code: str) -> dict[str, Any]:
    entry = CATALOGUE[code]
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in code.split("-")),
        "shortDescription": {"text": entry.meaning},
        "fullDescription": {"text": f"{entry.meaning}. Usual cause: {entry.cause}."},
        "help": {"text": entry.remedy},
    }


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    subject = finding.tensor or finding.param
    text = finding.summary + (f"\nhint: {finding.hint}" if finding.hint else "")
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(finding.file or "config.json")},
            "region": {"startLine": 1},
        }
    }
    if subject is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": subject}]
    identity = "\0".join((finding.code, finding.file or "", subject or "", finding.message))
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"loadmaster/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {"tensor": finding.tensor, "param": finding.param, "ranks": list(finding.ranks)},
    }
