"""A page of headings, paragraphs, lists and tables, as Markdown or as one self-contained HTML file.

Text is plain except that backticks enclose code. `code` turns text from outside (an engine's message) into code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, TypeAlias


@dataclass(frozen=True)
class Heading:
    """A heading of a level from 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of names with their texts; the names are in bold."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under their titles."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block: TypeAlias = Heading | Text | Items | Table


def code(text: str) -> str:
    """Return a text from outside as code: on one line, with its backticks replaced.

    >>> code("a `b`\\n c")
    "`a 'b' c`"
    """
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def markdown(blocks: Iterable[Block]) -> str:
    """Return a page as Markdown."""
    return "\n\n".join(_markdown(b) for b in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return _marked(text)
        case Items(items):
            return "\n".join(f"- **{name}**: {_marked(text)}" for name, text in items)
        case Table(titles, rows):
            lines = [titles, tuple("---" for _ in titles), *rows]
            return "\n".join("| " + " | ".join(_marked(c).replace("|", "\\|") for c in line) + " |" for line in lines)


def _marked(text: str) -> str:
    """Escape markup outside of code."""
    return "".join(f"`{part}`" if is_code else _unmarked(part) for part, is_code in _parts(text))


def _unmarked(text: str) -> str:
    for sign in "<>*_[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    for i, part in enumerate(text.split("`")):
        if part:
            yield part, i % 2 == 1


STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c;
  background: #fff; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .5rem; }
h2 { border-bottom: 1px solid #ccc; }
code { font: .85em ui-monospace, monospace; background: #f1f1f1; padding: .1em .25em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9em; margin: .75rem 0; }
th, td { border: 1px solid #ccc; padding: .3rem .5rem; text-align: left; vertical-align: top; }
th { background: #f1f1f1; }
@media (prefers-color-scheme: dark) {
  body { color: #e4e4e4; background: #161616; }
  code, th { background: #2a2a2a; }
  h2, th, td { border-color: #555; }
}
"""


def html(title: str, blocks: Iterable[Block]) -> str:
    """Return a page as one HTML file with its style, without scripts or external files."""
    body = "\n".join(_html(b) for b in blocks)
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_tagged(text)}</h{level}>"
        case Text(text):
            return f"<p>{_tagged(text)}</p>"
        case Items(items):
            lines = "\n".join(f"<li><b>{escape(name)}</b>: {_tagged(text)}</li>" for name, text in items)
            return f"<ul>\n{lines}\n</ul>"
        case Table(titles, rows):
            body = "\n".join(_row("td", row) for row in rows)
            return f'<div class="wide"><table>\n{_row("th", titles)}\n{body}\n</table></div>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_tagged(c)}</{tag}>" for c in cells) + "</tr>"


def _tagged(text: str) -> str:
    return "".join(f"<code>{escape(p)}</code>" if is_code else escape(p) for p, is_code in _parts(text))
