"""vLLM's options in a command line of ours: removed from it, then forwarded, ignored with a note, or refused by name.

This runs before argparse. It rewrites options as argparse knows them (hyphens for underscores, ``--model`` as MODEL), removes
those of `loadmaster.integrations.vllm.serve_options` with their values, and suggests the nearest name for an unknown one. The
table is imported only if a command does not have an option.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.integrations.vllm.serve_options import Option

CARRYING: Final = frozenset({"plan", "load", "generate", "serve", "inspect", "verify"})
"""Commands that accept vLLM's options."""


@dataclass(frozen=True, slots=True)
class Carried:
    """An option of vLLM in a command line, and its arguments as they were given; ``negated``: as ``--no-…``."""

    option: Option
    arguments: tuple[str, ...]
    negated: bool = False

    @property
    def changes_nothing(self) -> bool:
        """Whether its value is what applies without it."""
        values = self.arguments[1:]
        return self.negated or (bool(values) and set(values) <= self.option.harmless)


def carry_over(argv: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> tuple[list[str], list[Carried]]:
    """Divide a command line into the arguments that the command reads, and the options of vLLM that it does not have.

    Raises:
        UsageError: an option is refused, has no value, or is unknown.
    """
    command = argv[0] if argv else ""
    if command not in commands:
        return list(argv), []
    known = commands[command]._option_string_actions
    first, last, carried = [command], list[str](), list[Carried]()
    rest = list(argv[1:])
    while rest:
        word = rest.pop(0)
        if word == "--":
            last += [word, *rest]
            break
        if not _is_option(word):
            first.append(word)
            continue
        written, equals, value = word.partition("=")
        name = _canonical(written)
        if command in CARRYING and name not in known:
            name = _negation(name)
        if name in known and known[name].nargs == "+" and not equals:
            last += [name, *_run_of_values(rest)]  # last, so that it does not take what follows a removed option
        elif name in known:
            first.append(name + equals + value)
        elif command in CARRYING and name == "--model":
            first.insert(1, value if equals else _value(written, rest))
        elif command in CARRYING and (option := _of_vllm(name, known)) is not None:
            carried.append(_take(option, name, [value] if equals else None, rest))
        elif any(option_name.startswith(name) for option_name in known):
            first.append(name + equals + value)  # argparse refuses it if it is short for several
        else:
            raise UsageError(_unknown(written, known, command))
    for given in carried:
        if command != "serve" or not given.option.concern.forwarded:  # for serve, the others depend on the engine
            refuse(given, command)
    return [*first, *last], carried


def refuse(given: Carried, command: str) -> None:
    """Refuse an option that ``command`` must not ignore.

    Raises:
        UsageError: says why, and what to do.
    """
    option, concern = given.option, given.option.concern
    if command not in concern.refused_by or given.changes_nothing:
        return
    hint = option.remedy or "leave it out"
    if command == "serve":
        hint += (
            "; --engine vllm passes it to vLLM" if concern.forwarded else "; after -- it is passed to vLLM, unproven"
        )
    raise UsageError(f"{' '.join(given.arguments)}: {option.reason or concern.reason}", hint=hint)


def note(carried: Iterable[Carried], command: str) -> str | None:
    """Return the line that lists the ignored options by subject; None: there are none.

    >>> from loadmaster.integrations.vllm.serve_options import OPTIONS
    >>> note([Carried(OPTIONS["--seed"], ("--seed", "7"))], "plan")
    'loadmaster plan: ignored: --seed (how vLLM runs)'
    """
    about: dict[str, list[str]] = {}
    for given in carried:
        names = about.setdefault("no change" if given.changes_nothing else given.option.concern.about, [])
        if given.arguments[0] not in names:
            names.append(given.arguments[0])
    if not about:
        return None
    ignored = "; ".join(f"{', '.join(names)} ({what})" for what, names in about.items())
    return f"loadmaster {command}: ignored: {ignored}"


def forwarded(carried: Iterable[Carried]) -> list[str]:
    """Return the arguments that are passed to vLLM's server."""
    return [argument for given in carried if given.option.concern.forwarded for argument in given.arguments]


def _is_option(word: str) -> bool:
    """Whether argparse would read a word as an option: not a number, and no space before ``=``.

    >>> [_is_option(word) for word in ("-tp", "--a=b c", "-1", "-.5", "-", "-- a sentence")]
    [True, True, False, False, False, False]
    """
    return len(word) > 1 and word[0] == "-" and not re.match(r"-\.?\d", word) and " " not in word.partition("=")[0]


def _canonical(written: str) -> str:
    return written.replace("_", "-") if written.startswith("--") else written


def _negation(name: str) -> str:
    """Return ``--no-enable-x`` for ``--disable-x``, and so for ``--enable-x``: vLLM 0.33 has both forms, 0.32 the first.

    >>> _negation("--disable-prefix-caching"), _negation("--disable-log-stats")
    ('--no-enable-prefix-caching', '--disable-log-stats')
    """
    from loadmaster.integrations.vllm.serve_options import OPTIONS

    for prefix, inverse in (("--disable-", "--enable-"), ("--enable-", "--disable-")):
        if name.startswith(prefix) and name not in OPTIONS:
            positive = OPTIONS.get(inverse + name.removeprefix(prefix))
            if positive is not None and positive.values == 0:
                return f"--no-{positive.name[2:]}"
    return name


def _of_vllm(name: str, known: Mapping[str, object]) -> Option | None:
    """Return the option of vLLM that a name means: short, negated, or with a key of its JSON after a dot.

    Raises:
        UsageError: a key after a dot, of an option that the command reads as JSON.
    """
    from loadmaster.integrations.vllm.serve_options import OPTIONS, SHORT

    base, dot, key = name.partition(".")
    if dot and (base in known or SHORT.get(base) in known):
        raise UsageError(f"{name}: {base} cannot be given key by key", hint=f"write {base} '{{\"{key}\": …}}'")
    if base.startswith("-O") and base not in SHORT:
        return OPTIONS["--optimization-level"] if base[2:].isdecimal() else None
    long = SHORT.get(base, base)
    if long.startswith("--no-") and (negated := OPTIONS.get(f"--{long[5:]}")) is not None and negated.values == 0:
        return negated
    return OPTIONS.get(long)


def _take(option: Option, name: str, values: list[str] | None, rest: list[str]) -> Carried:
    """Return an option with its values: ``values`` if they were in the same argument, otherwise the next arguments."""
    from loadmaster.integrations.vllm.serve_options import SHORT

    base, dot, key = name.partition(".")
    negated = base == f"--no-{option.name[2:]}"
    if base not in SHORT and base.startswith("-O"):
        return Carried(option, (base,))
    given = base if negated else option.name + dot + key
    if values is None:
        values = []
        if option.values == 1 or (option.values == "?" and rest and not _is_option(rest[0])):
            values = [_value(name, rest)]
        elif option.values == "+":
            values = [_value(name, rest), *_run_of_values(rest)]
    return Carried(option, (given, *values), negated)


def _run_of_values(rest: list[str]) -> list[str]:
    values = []
    while rest and rest[0] != "--" and not _is_option(rest[0]):
        values.append(rest.pop(0))
    return values


def _value(name: str, rest: list[str]) -> str:
    if not rest or rest[0] == "--" or _is_option(rest[0]):
        raise UsageError(f"{name} has no value")
    return rest.pop(0)


def _unknown(written: str, known: Iterable[str], command: str) -> str:
    import difflib

    from loadmaster.integrations.vllm.serve_options import OPTIONS

    names = [*known, *(OPTIONS if command in CARRYING else ())]
    near = difflib.get_close_matches(_canonical(written), dict.fromkeys(names), n=1, cutoff=0.7)
    suggestion = f"; did you mean {near[0]}?" if near else f"; `loadmaster {command} --help` lists them"
    return f"there is no option {written}{suggestion}"
