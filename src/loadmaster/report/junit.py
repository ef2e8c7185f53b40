"""Findings as JUnit XML, which CI servers (Jenkins, GitLab, Azure DevOps) show as tests.

Each section of the catalogue is a class. An error is a test that failed; a section without errors is one test that passed,
with its warnings and notes as output; one that was not checked is a test that was skipped. The format: https://github.com/testmoapp/junitxml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from loadmaster.catalogue import SECTIONS
from loadmaster.findings import Finding, ranges


def junit_xml(findings: Sequence[Finding], suite: str, elapsed_s: float, unchecked: Mapping[str, str]) -> str:
    """Return the XML of a suite of tests that is called ``suite``. ``unchecked`` are sections that were not checked, and why."""
    root = ElementTree.Element("testsuites")
    element = ElementTree.SubElement(root, "testsuite", name=_text(suite))
    num_tests = num_failed = num_skipped = 0
    for section, entries in SECTIONS.items():
        mine = [f for f in findings if f.code in entries]
        if not mine and section in unchecked:
            case = ElementTree.SubElement(element, "testcase", classname=section, name=f"{section}: not checked")
            ElementTree.SubElement(case, "skipped", message=unchecked[section])
            num_skipped, num_tests = num_skipped + 1, num_tests + 1
            continue
        failed = [f for f in mine if f.severity == "error"]
        for finding in failed:
            case = ElementTree.SubElement(element, "testcase", classname=section, name=_text(_name(finding)))
            failure = ElementTree.SubElement(case, "failure", type=finding.code, message=_text(finding.message))
            failure.text = _text(_details(finding))
        others = [f for f in mine if f.severity != "error"]
        if not failed or others:
            case = ElementTree.SubElement(element, "testcase", classname=section, name=f"{section}: checked")
            if others:
                output = ElementTree.SubElement(case, "system-out")
                output.text = _text("\n\n".join(f"{f.severity} {_name(f)}\n{_details(f)}" for f in others))
        num_failed += len(failed)
        num_tests += len(failed) + (not failed or bool(others))
    counts = {"tests": str(num_tests), "failures": str(num_failed), "errors": "0", "time": f"{elapsed_s:.3f}"}
    root.attrib.update(counts)
    element.attrib.update(counts | {"skipped": str(num_skipped)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _name(finding: Finding) -> str:
    subject = finding.tensor or finding.param or finding.file
    return f"{finding.code}: {subject}" if subject else finding.code


def _details(finding: Finding) -> str:
    lines = [finding.message]
    if finding.file:
        lines.append(f"file: {finding.file}")
    if finding.ranks:
        lines.append(f"ranks: {ranges(finding.ranks)}")
    if finding.hint:
        lines.append(f"hint: {finding.hint}")
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return text without the characters that XML cannot hold."""
    return "".join(c if c in "\n\t" or (c >= " " and c.isprintable()) else "�" for c in text)
