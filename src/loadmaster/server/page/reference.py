"""The page at ``/docs``: an OpenAPI schema as HTML, without script. Every value is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any, Final

from loadmaster.server.page.document import asset

UNBOUNDED: Final = 2**63
"""Limits of this size are those of integers, and not worth a reader's time."""


def reference(schema: Mapping[str, Any]) -> str:
    """Return the page for ``schema``; ``{{style}}`` stands where its style belongs."""
    operations = [(p, m, op) for p, methods in schema["paths"].items() for m, op in methods.items()]
    links = "".join(f'<li><a href="#{_anchor(p, m)}">{_code(f"{m.upper()} {p}")}</a></li>' for p, m, _ in operations)
    texts = {
        "title": escape(schema["info"]["title"]),
        "version": escape(schema["info"]["version"]),
        "description": escape(schema["info"].get("description", "")),
        "links": links,
        "operations": "".join(_operation(schema, *operation) for operation in operations),
    }
    html = asset("docs.html")
    for name, text in texts.items():
        html = html.replace(f"{{{{{name}}}}}", text)
    return html


def _anchor(path: str, method: str) -> str:
    return escape(f"{method}{path}".replace("/", "-").replace("{", "").replace("}", ""))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _operation(schema: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f'<section class="panel" id="{_anchor(path, method)}"><h2>{_code(f"{method.upper()} {path}")}</h2>']
    if text := operation.get("description"):
        parts.append(f"<p>{escape(text)}</p>")
    if operation.get("security"):
        parts.append('<p class="muted">Needs the API key as a bearer token, if the server has one.</p>')
    if parameters := operation.get("parameters"):
        rows = {p["name"]: (p.get("schema", {}), p.get("required", False)) for p in parameters}
        parts.append(_fields("Parameters", schema, rows))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(_object("Fields of the body", schema, body))
    for status, answer in sorted(operation.get("responses", {}).items()):
        parts.append(_answer(schema, status, answer))
    return "".join([*parts, "</section>"])


def _answer(schema: Mapping[str, Any], status: str, answer: Mapping[str, Any]) -> str:
    kinds = answer.get("content", {})
    head = f"{_code(status)} {escape(answer.get('description', ''))}"
    if "text/event-stream" in kinds:
        head += f" Or {_code('text/event-stream')}."
    body = kinds.get("application/json", {}).get("schema")
    if not body or status[0] in "45":
        return f'<p class="answer">{head}</p>'
    return f"<details><summary>{head}</summary>{_object('', schema, body)}</details>"


def _object(title: str, schema: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    body = _resolved(schema, body)
    required = set(body.get("required", ()))
    rows = {name: (field, name in required) for name, field in body.get("properties", {}).items()}
    return _fields(title, schema, rows)


def _fields(title: str, schema: Mapping[str, Any], rows: Mapping[str, tuple[Mapping[str, Any], bool]]) -> str:
    if not rows:
        return ""
    head = '<tr><th scope="col">Name</th><th scope="col">Type</th><th scope="col">Default</th></tr>'
    lines = []
    for name, (field, is_required) in rows.items():
        default = "required" if is_required else _code(json.dumps(field["default"])) if "default" in field else "–"
        about = f'<br><span class="muted">{escape(field["description"])}</span>' if "description" in field else ""
        lines.append(f"<tr><td>{_code(name)}{about}</td><td>{escape(_type(schema, field))}</td><td>{default}</td></tr>")
    caption = f"<h3>{escape(title)}</h3>" if title else ""
    return f'{caption}<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _resolved(schema: Mapping[str, Any], field: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(field.get("$ref", "")).rpartition("/")[2]
    resolved: Mapping[str, Any] = schema["components"]["schemas"][name] if name else field
    return resolved


def _type(schema: Mapping[str, Any], field: Mapping[str, Any], depth: int = 0) -> str:
    """Return a type in words: ``integer, at least 1, or null``."""
    if "$ref" in field:
        inner = _resolved(schema, field)
        names = ", ".join(inner.get("properties", {}))
        return f"object ({names})" if names and depth == 0 else "object"
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    if "const" in field:
        return json.dumps(field["const"])
    if kinds := field.get("anyOf", field.get("oneOf")):
        return ", or ".join(dict.fromkeys(_type(schema, kind, depth) for kind in kinds))
    kind = str(field.get("type", "any value"))
    if kind == "array":
        return f"list of {_type(schema, field.get('items', {}), depth + 1)}"
    limits = (("minimum", "at least"), ("maximum", "at most"), ("exclusiveMaximum", "below"))
    bounds = [f"{words} {field[key]}" for key, words in limits if key in field and abs(field[key]) < UNBOUNDED]
    return ", ".join([kind, *bounds])
