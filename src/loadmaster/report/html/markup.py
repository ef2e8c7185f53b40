"""Writes HTML and SVG: every text and attribute is escaped here, so that no caller can forget it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from loadmaster.checkpoint.lookalike import printable

VOID = frozenset({"br", "line", "meta", "rect"})
"""Elements that are written without an end tag, or (SVG) closed at once."""


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into an element."""

    __slots__ = ()


Content: TypeAlias = "Markup | str | Iterable[Markup | str]"


def element(name: str, content: Content = (), /, **attributes: object) -> Markup:
    """Return one element. Of an attribute's name, a trailing ``_`` is dropped and others become ``-``; None is left out.

    >>> element("a", "1 < 2", href="#x", class_="top")
    '<a href="#x" class="top">1 &lt; 2</a>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not content:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Content) -> Markup:
    """Return contents one after another, escaped where they are not HTML."""
    pieces = [content] if isinstance(content, str) else content
    return Markup("".join(p if isinstance(p, Markup) else escape(text(p)) for p in pieces))


def text(value: object) -> str:
    """Return a value as text without control characters; numbers with few digits."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return printable(str(value), 2000)
