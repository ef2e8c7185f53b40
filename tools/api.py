"""The page of the library: every public name with its signature and docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import loadmaster
from tools.pages import table

SECTIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "Checkpoints": ("loadmaster", ("checkpoint",), ""),
    "Layouts": ("loadmaster", ("parallel",), ""),
    "Plans and proofs": ("loadmaster", ("plan", "findings"), ""),
    "Loading": ("loadmaster", ("loader",), "Needs `loadmaster[run]`."),
    "Running": ("loadmaster", ("engine", "workers"), "Needs `loadmaster[run]`."),
    "Errors": (
        "loadmaster",
        ("errors",),
        "All are of one tree. `exit_code` is what the command line ends with; `hint`, where there is one, says what to do "
        "next. An `InputError` carries the `code` of a [finding](findings.md), and `findings` where it has several.",
    ),
    "For authors of families": (
        "loadmaster.architectures",
        (),
        "The guide [Add a family](../guides/add-a-family.md) explains them. `loadmaster.architectures.blocks` has the "
        "parts that families share.",
    ),
    "For tests of families": ("loadmaster.testing", (), "The same guide uses them, from pytest."),
}
"""Heading → the module to import from, the rooms of it (none: all its public names), an introduction."""

INTRODUCTION = """\
What is listed here is the library, and typed. The first five sections and the errors are imported from `loadmaster` itself;
each name is loaded when it is first asked for, so planning never imports torch. Everything else may change from one version
to the next. [Use it as a library](../guides/library.md) shows how they go together."""


def parts() -> list[str]:
    """Return the page's parts."""
    made = [INTRODUCTION]
    for heading, (module, rooms, introduction) in SECTIONS.items():
        made.append(f"## {heading}")
        made.append(f"`from {module} import …`" + (f" {introduction}" if introduction else ""))
        for name in public_names(module, rooms):
            made += entry(name, getattr(importlib.import_module(module), name))
    return made


def public_names(module: str, rooms: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of a section."""
    if not rooms:
        yield from importlib.import_module(module).__all__
    for room in rooms:
        yield from vars(loadmaster)["ROOMS"][room]


def entry(name: str, value: Any) -> Iterator[str]:
    """Yield what stands about one name."""
    yield f"### {name}"
    if isinstance(value, type) and issubclass(value, BaseException):
        yield f"`{name}({value.__bases__[0].__name__})`" + (
            f", exit code {value.exit_code}" if hasattr(value, "exit_code") else ""
        )
        yield from prose(inspect.getdoc(value) or "")
        return
    if not callable(value) or not getattr(value, "__doc__", None) or not isinstance(value, (type, FunctionType)):
        yield f"```text\n{name} = {str(value).replace('typing.', '').replace('collections.abc.', '')}\n```"
        return
    yield f"```text\n{signature(name, value)}\n```"
    yield from prose(inspect.getdoc(value) or "")
    if isinstance(value, type) and (members := list(public_members(value))):
        yield table(("member", "what it is"), members)


def public_members(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the methods and properties of a class with the first sentence about each."""
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        function = getattr(value, "__func__", value)
        doc = inspect.getdoc(function)
        if not doc:
            continue
        first = " ".join(markup(doc.split("\n\n")[0]).split())
        if isinstance(function, FunctionType):
            yield (
                f"`{name}({', '.join(p for p in inspect.signature(function).parameters if p not in ('self', 'cls'))})`",
                first,
            )
        elif isinstance(value, property) or hasattr(value, "attrname"):  # functools.cached_property
            yield f"`{name}`", first


def signature(name: str, value: Any) -> str:
    """Return a call as it is written in the source, one parameter a line where it is long."""
    found = inspect.signature(value)
    written: list[str] = []
    keyword_only = False
    for p in found.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            written.append("*")
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        keyword_only = keyword_only or star == "*"
        annotation = "" if p.annotation is p.empty else f": {annotated(p.annotation)}"
        written.append(f"{star}{p.name}{annotation}" + ("" if p.default is p.empty else f" = {shown(p.default)}"))
    result = (
        ""
        if isinstance(value, type) or found.return_annotation is found.empty
        else f" -> {annotated(found.return_annotation)}"
    )
    line = f"{name}({', '.join(written)}){result}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(written) + f",\n){result}"


def annotated(annotation: object) -> str:
    """Return an annotation as it is written."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def shown(default: object) -> str:
    """Return a default value; what has no short form is `…`."""
    text = repr(default)
    return "…" if text.startswith("<") or len(text) > 60 else text


def prose(doc: str) -> Iterator[str]:
    """Yield a docstring's paragraphs as Markdown: its sections as lists, its examples as plain blocks."""
    for paragraph in doc.split("\n\n"):
        lines = paragraph.splitlines()
        if not lines:
            continue
        if lines[0].strip() in ("Raises:", "Returns:"):
            title = lines[0].strip().rstrip(":")
            items = re.split(r"\n(?=[A-Z]\w*(?:, \w+)*: )", inspect.cleandoc("\n".join(lines[1:])))
            joined = [" ".join(item.split()) for item in items]
            if title == "Raises":
                yield f"**{title}**\n\n" + "\n".join("- " + re.sub(r"^([\w, ]+):", r"`\1`:", markup(i)) for i in joined)
            else:
                yield f"**{title}** " + " ".join(map(markup, joined))
        elif lines[0].startswith(">>>"):
            yield "```text\n" + paragraph + "\n```"
        elif all(line.startswith("    ") for line in lines):
            yield "```text\n" + inspect.cleandoc(paragraph) + "\n```"
        else:
            yield markup(paragraph)


def markup(text: str) -> str:
    """Return reStructuredText's code marks as Markdown's."""
    return text.replace("``", "`")
