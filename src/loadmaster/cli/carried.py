"""What a command line has from vLLM beside the options of a command here: taken out, ignored aloud or refused by name.

This runs before argparse: options are written as argparse knows them (hyphens for underscores, ``--model`` as MODEL), those
of `loadmaster.cli.vllm_options` are taken out with their values, and a name that nobody knows gets the nearest one. The table
is only read where a command does not have an option.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.cli.vllm_options import Option

CARRYING: Final = frozenset({"plan", "load", "generate", "serve", "inspect", "verify"})
"""Commands whose line may have been carried over from vLLM."""


@dataclass(frozen=True, slots=True)
class Carried:
    """An option of vLLM that was given, and the arguments that it was given as; ``negated``: as ``--no-…``."""

    option: Option
    arguments: tuple[str, ...]
    negated: bool = False

    @property
    def changes_nothing(self) -> bool:
        """Whether it says what holds without it."""
        values = self.arguments[1:]
        return self.negated or (bool(values) and set(values) <= self.option.harmless)


def carry_over(argv: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> tuple[list[str], list[Carried]]:
    """Divide a command line into what the command reads, and the options of vLLM that it does not have.

    Raises:
        UsageError: an option is refused, lacks its value, or is known to nobody.
    """
    command = argv[0] if argv else ""
    if command not in commands:
        return list(argv), []
    own = commands[command]._option_string_actions
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
        if (
            name in own and own[name].nargs == "+" and not equals
        ):  # last, so that it takes no value of what is taken out
            last += [name, *_run_of_values(rest)]
        elif name in own:
            first.append(name + equals + value)
        elif command in CARRYING and name == "--model":
            first.insert(1, value if equals else _value(written, rest))
        elif command in CARRYING and (option := _of_vllm(name, own)) is not None:
            carried.append(_take(option, name, [value] if equals else None, rest))
        elif any(known.startswith(name) for known in own):
            first.append(name + equals + value)  # argparse says if it is short for several
        else:
            raise UsageError(_unknown(written, own, command))
    for given in carried:
        if command != "serve" or not given.option.concern.forwarded:  # the rest of serve's depends on the engine
            refuse(given, command)
    return [*first, *last], carried


def refuse(given: Carried, command: str) -> None:
    """Refuse an option that ``command`` cannot do without; nothing if it may be ignored.

    Raises:
        UsageError: says why, and what to do.
    """
    option, concern = given.option, given.option.concern
    if command not in concern.refused_by or given.changes_nothing:
        return
    hint = option.remedy or "leave it out"
    if command == "serve":
        hint += "; --engine vllm hands it on" if concern.forwarded else "; after -- it goes to vLLM, unproven"
    raise UsageError(f"{' '.join(given.arguments)}: {option.reason or concern.reason}", hint=hint)


def note(carried: Iterable[Carried], command: str) -> str | None:
    """Return the line that says which options are ignored, and what they are about; None: there are none.

    >>> from loadmaster.cli.vllm_options import OPTIONS
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
    told = "; ".join(f"{', '.join(names)} ({what})" for what, names in about.items())
    return f"loadmaster {command}: ignored: {told}"


def forwarded(carried: Iterable[Carried]) -> list[str]:
    """Return the arguments that vLLM's server gets."""
    return [argument for given in carried if given.option.concern.forwarded for argument in given.arguments]


def _is_option(word: str) -> bool:
    """Whether argparse would take a word for an option: no number, and nothing with a space before ``=``.

    >>> [_is_option(word) for word in ("-tp", "--a=b c", "-1", "-.5", "-", "-- a sentence")]
    [True, True, False, False, False, False]
    """
    return len(word) > 1 and word[0] == "-" and not re.match(r"-\.?\d", word) and " " not in word.partition("=")[0]


def _canonical(written: str) -> str:
    return written.replace("_", "-") if written.startswith("--") else written


def _of_vllm(name: str, own: Mapping[str, object]) -> Option | None:
    """Return the option of vLLM that a name stands for: short, negated, or with a key of its JSON after a dot.

    Raises:
        UsageError: a key of an option that is read here, where it is written as JSON.
    """
    from loadmaster.cli.vllm_options import OPTIONS, SHORT

    base, dot, key = name.partition(".")
    if dot and (base in own or SHORT.get(base) in own):
        raise UsageError(f"{name}: keys of {base} are not read one by one", hint=f"write {base} '{{\"{key}\": …}}'")
    if base.startswith("-O") and base not in SHORT:
        return OPTIONS["--optimization-level"] if base[2:].isdecimal() else None
    long = SHORT.get(base, base)
    if long.startswith("--no-") and (negated := OPTIONS.get(f"--{long[5:]}")) is not None and negated.values == 0:
        return negated
    return OPTIONS.get(long)


def _take(option: Option, name: str, values: list[str] | None, rest: list[str]) -> Carried:
    """Return an option with its values: ``values`` if they stood in the same argument, or what follows it."""
    from loadmaster.cli.vllm_options import SHORT

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


def _unknown(written: str, own: Iterable[str], command: str) -> str:
    import difflib

    from loadmaster.cli.vllm_options import OPTIONS

    known = [*own, *(OPTIONS if command in CARRYING else ())]
    near = difflib.get_close_matches(_canonical(written), dict.fromkeys(known), n=1, cutoff=0.7)
    meant = f"; did you mean {near[0]}?" if near else f"; `loadmaster {command} --help` lists them"
    return f"there is no option {written}{meant}"
