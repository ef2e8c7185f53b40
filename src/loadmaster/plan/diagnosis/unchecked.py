"""Architectures whose tables could not be compared with a release: every plan of them says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadmaster.architectures.aliases import architecture_of
from loadmaster.architectures.schema import Family
from loadmaster.findings import Finding


def unchecked(family: Family, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a warning where the family says what was not compared of the config's architecture."""
    name = architecture_of(config)
    if reason := family.unchecked.get(name or ""):
        message = f"the tables of {name} were not compared with a release: {reason}"
        hint = "the headers are still proven against them: a tensor that is missing, left over or of another shape is an error"
        yield Finding("family-unchecked", "warning", message, file="config.json", hint=hint)
