"""One entry of the catalogue."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """The texts of one code. ``example`` is a finding's `summary <loadmaster.findings.Finding.summary>`."""

    meaning: str
    cause: str
    example: str
    remedy: str
