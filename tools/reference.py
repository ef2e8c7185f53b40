"""Generates docs/reference from the program: commands and options, findings, formats, models, limits, the library, the
server's API.

The picture of the rooms in ARCHITECTURE.md is generated too, from the import contract.

``python -m tools.reference`` writes the pages, ``--check`` compares and exits with 1 if one is not current. Options are
read from the argparse parsers rather than from ``--help``, whose form differs between versions of Python.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from loadmaster.catalogue import SECTIONS, Entry
from loadmaster.cli.main import build_parser
from tools import api, formats, limits, models, rooms, server_api
from tools.pages import page, table

ROOT = Path(__file__).parents[1]

PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/cli.md": lambda: cli_page(build_parser()),
    "docs/reference/findings.md": lambda: findings_page(),
    "docs/reference/formats.md": lambda: page("Number formats", formats.parts()),
    "docs/reference/models.md": lambda: page("Models", models.parts()),
    "docs/reference/limits.md": lambda: page("Limits", [*limits.parts()]),
    "docs/reference/api.md": lambda: page("Library", api.parts()),
    "docs/reference/server-api.md": lambda: page("The server's API", server_api.parts()),
    "ARCHITECTURE.md": rooms.page_text,
}
"""File → the function that returns its text."""


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or check them. Return the exit status."""
    options = argparse.ArgumentParser(prog="python -m tools.reference", description=__doc__)
    options.add_argument("--check", action="store_true", help="compare, write nothing, exit with 1 on a difference")
    check = options.parse_args(argv).check
    status = 0
    for name, make in PAGES.items():
        text, file = make(), ROOT / name
        current = file.read_text(encoding="utf-8") if file.exists() else ""
        if current == text:
            continue
        if check:
            status = 1
            print(f"{name} is not current; run `make reference`", file=sys.stderr)
            sys.stderr.writelines(
                difflib.unified_diff(current.splitlines(True), text.splitlines(True), "current", "generated")
            )
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return status


def findings_page() -> str:
    """Return the catalogue of findings as a page: a table of all codes, then each with cause, example and remedy."""
    parts = [
        "Each finding of a plan carries one of these codes. What else it carries is in `loadmaster.findings`.",
        "Errors come first, then warnings, then notes; alike ones in the order of this page: what is wrong with files may "
        "explain what is wrong with tensors. A defect is reported once, at its cause, with the ranks that it touches: the "
        "tensors lost with a shard, the tensors of a missing layer and missing experts are counted in one finding.",
    ]
    for title, entries in SECTIONS.items():
        parts.append(f"## {title}")
        parts.append(table(("code", "what it means"), ((f"[`{c}`](#{c})", e.meaning) for c, e in entries.items())))
        parts += [part for code, entry in entries.items() for part in entry_parts(code, entry)]
    return page("Findings", parts)


def entry_parts(code: str, entry: Entry) -> Iterator[str]:
    """Yield what is said of one code."""
    yield f"### {code}"
    yield f"{sentence(entry.meaning)} **Comes about by** {entry.cause}. **What to do:** {sentence(entry.remedy)}"
    if entry.example:
        yield f"```text\n{entry.example}\n```"


def sentence(text: str) -> str:
    """Return ``text`` as a sentence; names in code stay as they are."""
    return f"{text[0].upper()}{text[1:]}."


def cli_page(parser: argparse.ArgumentParser) -> str:
    """Return the page of all commands."""
    parts = list(command_parts(parser))
    for name, command in subcommands(parser).items():
        parts += [f"## {parser.prog} {name}", *command_parts(command)]
    return page("Command line", parts)


def command_parts(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield what stands under a command's heading."""
    positionals = " ".join(metavar(a) for a in parser._actions if not a.option_strings and visible(a))
    usage = f"{parser.prog} {positionals}".rstrip()
    yield f"```text\n{usage} [options]\n```"
    if parser.description:
        yield parser.description.strip()
    for group in parser._action_groups:
        rows = [
            (spelling(action), expand(action, parser), default(action))
            for action in group._group_actions
            if visible(action) and not isinstance(action, argparse._HelpAction)
        ]
        if rows:
            title = (group.title or "options").removeprefix("positional ")
            yield f"**{title[0].upper()}{title[1:]}**" + (f": {group.description}" if group.description else "")
            yield table(("option" if title != "arguments" else "argument", "meaning", "default"), rows)
    if commands := subcommands(parser):
        [choices] = [a._choices_actions for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        help_of = {choice.dest: choice.help or "" for choice in choices}
        links = ((f"[`{name}`](#{parser.prog}-{name})", help_of.get(name, "")) for name in commands)
        yield table(("command", "what it does"), links)
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def visible(action: argparse.Action) -> bool:
    """Return whether ``--help`` shows an option in its list."""
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)


def metavar(action: argparse.Action) -> str:
    """Return what stands for an option's value."""
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def spelling(action: argparse.Action) -> str:
    """Return all names of an option and its value, as code."""
    value = metavar(action)
    names = ", ".join(action.option_strings)
    return f"`{names} {value}`".replace(" `", "`") if names else f"`{value}`"


def expand(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return an option's help with argparse's placeholders filled in."""
    return " ".join((action.help or "").split()) % {**vars(action), "prog": parser.prog} if action.help else ""


def default(action: argparse.Action) -> str:
    """Return an option's default, as code; nothing where there is none to speak of."""
    if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
        return ""
    return f"`{action.default}`"


if __name__ == "__main__":
    sys.exit(main())
