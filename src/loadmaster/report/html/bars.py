"""Bars of bytes by kind, as SVG: all sizes are attributes, because the file's policy forbids inline styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from loadmaster.findings import gib
from loadmaster.plan.anatomy import KINDS, Kind
from loadmaster.report.html.markup import Markup, element

Part: TypeAlias = tuple[str, str, int]
"""A part of a bar: the class of its colour, its title, its bytes."""

WIDTH = 100.0
"""The width of a drawing in its own units; it is stretched to the width of the page."""


def kind_class(kind: Kind) -> str:
    """Return the class of a kind's colour."""
    return f"k-{kind.lower()}"


def stacked(parts: Sequence[Part], scale: int, y: float, height: float) -> list[Markup]:
    """Return the rectangles of one bar, one part after another, where ``scale`` bytes are the whole width."""
    made, at = [], 0.0
    for class_, title, num_bytes in parts:
        width = WIDTH * num_bytes / max(scale, 1)
        if width > 0:
            named = element("title", title)
            made.append(element("rect", [named], class_=class_, x=at, y=y, width=width, height=height))
        at += width
    return made


def by_kind(sizes: Mapping[Kind, int]) -> list[Part]:
    """Return the parts of a bar of bytes by kind."""
    return [(kind_class(kind), f"{kind}: {gib(sizes[kind])}", sizes[kind]) for kind in KINDS if sizes.get(kind)]


def drawing(shapes: Sequence[Markup], height: float, label: str, class_: str = "") -> Markup:
    """Return shapes as a drawing that is as wide as its place and ``height`` pixels high."""
    return element(
        "svg",
        shapes,
        class_=class_ or None,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        height=height,
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )
