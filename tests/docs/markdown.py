"""The project's documents, as far as tests need to read them: fenced blocks, marks, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUN = ("bash", "console", "python")
"""Languages whose blocks are run."""

ALIASES = {"sh": "bash", "shell": "bash", "zsh": "bash", "shell-session": "console", "py": "python", "pycon": "python"}
"""Languages that would escape being run by their spelling, and what to write instead."""

FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<language>[\w-]*)")
MARK = re.compile(r"^\s*<!--\s*not run\b:?(?P<reason>.*)-->\s*$")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*#*$")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``line`` is its fence's, from 1. ``reason`` says why it is not run; ``None``: it is."""

    language: str
    text: str
    line: int
    reason: str | None


@dataclass(frozen=True)
class Document:
    """What was found in one Markdown text, ``faults`` of marks and fences included."""

    blocks: tuple[Block, ...]
    links: tuple[str, ...]
    anchors: frozenset[str]
    faults: tuple[str, ...]


def pages() -> list[Path]:
    """Return the README and its neighbours, and all of docs/."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def read(path: Path) -> Document:
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> Document:
    blocks: list[Block] = []
    links: list[str] = []
    anchors: list[str] = []
    faults: list[str] = []
    mark: tuple[int, str] | None = None  # waits for the block that it belongs to
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if found := MARK.match(line):
            mark = number, found["reason"].strip()
            if not mark[1]:
                faults.append(f"line {number}: a mark must say why: <!-- not run: reason -->")
        elif opened := FENCE.match(line):
            body: list[str] = []
            for _, inner in lines:
                if re.fullmatch(rf"\s*{re.escape(opened['fence'][0])}{{{len(opened['fence'])},}}\s*", inner):
                    break
                body.append(inner.removeprefix(opened["indent"]))
            else:
                faults.append(f"line {number}: this block never ends")
            language = opened["language"].lower()
            if language in ALIASES:
                faults.append(f"line {number}: write {ALIASES[language]} instead of {language}, so that it is run")
            if mark and language not in RUN:
                faults.append(f"line {mark[0]}: nothing is marked here; a {language or 'plain'} block is never run")
            blocks.append(Block(language, "\n".join(body) + "\n", number, mark[1] if mark else None))
            mark = None
        elif line.strip():
            if mark:
                faults.append(f"line {mark[0]}: a mark must stand right before its block")
                mark = None
            if found := HEADING.match(line):
                anchors.append(slug(found["text"], anchors))
            links += [found["target"] for found in LINK.finditer(re.sub(r"`[^`]*`", "", line))]
    if mark:
        faults.append(f"line {mark[0]}: a mark must stand right before its block")
    return Document(tuple(blocks), tuple(links), frozenset(anchors), tuple(faults))


def slug(heading: str, taken: list[str]) -> str:
    """Return a heading's anchor by GitHub's rule: lower case, no punctuation, hyphens for spaces, repeats numbered."""
    plain = LINK.sub(lambda link: link[0].split("](")[0].lstrip("![").rstrip("]"), heading)
    base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
    anchor, count = base, 0
    while anchor in taken:
        count += 1
        anchor = f"{base}-{count}"
    return anchor
