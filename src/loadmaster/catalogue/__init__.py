"""The catalogue of findings: for each code what it means, how it comes about, an example, and what to do.

Each section is a file of this folder. Reports and the reference use the same texts; the reference is generated from here.
Sections, and the codes in them, are in the order in which findings are shown (`ranked`): an earlier finding may explain
a later one. The tests compare each example with a checkpoint that is damaged in that way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from loadmaster.catalogue.configuration import CONFIGURATION
from loadmaster.catalogue.entry import Entry
from loadmaster.catalogue.files import FILES
from loadmaster.catalogue.laws import LAWS
from loadmaster.catalogue.layout import LAYOUT
from loadmaster.catalogue.lock import LOCK
from loadmaster.catalogue.payload import PAYLOAD
from loadmaster.catalogue.tensors import TENSORS
from loadmaster.findings import Finding

__all__ = ["CATALOGUE", "SECTIONS", "Entry", "ranked"]

SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "Files": FILES,
    "Configuration": CONFIGURATION,
    "Tensors": TENSORS,
    "Payload": PAYLOAD,
    "Layout": LAYOUT,
    "Laws": LAWS,
    "Lock": LOCK,
}
"""The catalogue as it is printed."""

CATALOGUE: Final[dict[str, Entry]] = {code: entry for section in SECTIONS.values() for code, entry in section.items()}
"""Every code that a finding can carry."""

_RANK: Final = {code: rank for rank, code in enumerate(CATALOGUE)}
_SEVERITY: Final = {"error": 0, "warning": 1, "note": 2}


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings in the order in which they are shown: errors first, then in the catalogue's order.

    Files come before the config, the config before tensors, values before scales, tensors before the layout and the laws.
    Alike findings stay in the order in which they were found, which is that of files and layers.
    """
    return tuple(sorted(findings, key=lambda f: (_SEVERITY[f.severity], _RANK[f.code])))
