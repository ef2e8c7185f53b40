"""Puts a page together: its parts, its data, its style and script, and the policy that allows nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import orjson

from loadmaster.report.html.markup import Markup, element
from loadmaster.report.page import inline_source, page_style


def document(title: str, header: Iterable[Markup], sections: Iterable[Markup], data: Mapping[str, Any]) -> str:
    """Return an HTML document. ``data`` are JSON values for its script."""
    style, script = page_style() + _asset("report.css"), _asset("report.js")
    allowed = f"style-src {inline_source(style)}; script-src {inline_source(script)}; img-src data:; base-uri 'none'"
    body = [element("header", header), element("main", sections)]
    parts = {
        "policy": element("meta", http_equiv="Content-Security-Policy", content=f"default-src 'none'; {allowed}"),
        "title": element("title", f"{title} · Loadmaster"),
        "style": style,
        "body": element("div", body, class_="page"),
        "data": _data(data),
        "script": script,
    }
    return _filled(_asset("report.html"), parts)


def section(title: str, content: Iterable[Markup], id_: str) -> Markup:
    """Return a panel with a heading."""
    heading = element("h2", title, id=f"{id_}-title")
    return element("section", [heading, *content], class_="panel", id=id_, aria_labelledby=f"{id_}-title")


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _data(value: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the element it is in."""
    return orjson.dumps(dict(value)).decode().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _filled(template: str, parts: dict[str, str]) -> str:
    """Return the template with its parts; what a part contains is not looked at again."""
    made, rest = [], template
    for name, part in parts.items():
        before, _, rest = rest.partition(f"{{{{{name}}}}}")
        made += [before, part]
    return "".join([*made, rest])
