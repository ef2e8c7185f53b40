"""Families of other packages: the entry points of the group ``loadmaster.families``.

An entry point loads to a `Family` or a sequence of them. Importing another package can fail in any way, and its tables
can be wrong: every failure is a `FamilyError` that names the distribution, never a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loadmaster.architectures.config import Config
from loadmaster.architectures.faults import fatal_faults
from loadmaster.architectures.schema import Family, Schema
from loadmaster.errors import FamilyError, LoadmasterError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "loadmaster.families"


@dataclass(frozen=True, slots=True)
class Plugin:
    """The families of one entry point, or the ``fault`` why there are none."""

    source: str
    families: tuple[Family, ...] = ()
    fault: str | None = None


def find_plugin(architecture: str, reserved: Collection[str] = ()) -> Family | None:
    """Return the family of another package that describes ``architecture``; None where none does.

    ``reserved`` are architectures that no other package may describe.

    Raises:
        FamilyError: two packages describe it, or none does and one of them is broken.
    """
    entries = plugins(reserved)
    matches = [(p.source, family) for p in entries for family in p.families if architecture in family.architectures]
    if len(matches) > 1:
        sources = " and ".join(source for source, _ in matches)
        raise FamilyError(
            f"the architecture {architecture!r} is described by {sources}", hint="uninstall all but one of them"
        )
    if matches:
        return matches[0][1]
    broken = [f"{p.source}: {p.fault}" for p in entries if p.fault]
    if broken:
        raise FamilyError(
            f"config.json: the architecture {architecture!r} is not known, and a package that may describe it is broken: "
            + "; ".join(broken),
            hint=f"repair or uninstall the package; its entry point is in the group {GROUP!r}",
        )
    return None


def plugins(reserved: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Return the families of every entry point of the group, in the order of their names.

    Finding them reads the metadata of all installed packages, about 60 ms in a small environment.
    """
    from importlib.metadata import entry_points

    return tuple(_load(e, reserved) for e in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)))


def _load(entry: EntryPoint, reserved: Collection[str]) -> Plugin:
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"
    source = f"{distribution} (entry point {entry.name} = {entry.value})"
    try:
        value = entry.load()
    except (Exception, SystemExit) as error:  # importing another package can raise anything
        return Plugin(source, fault=f"{type(error).__name__}: {error}")
    families = (value,) if isinstance(value, Family) else tuple(value) if _is_list(value) else ()
    if not families or not all(isinstance(f, Family) for f in families):
        return Plugin(source, fault=f"it is {_short(value)}, expected a Family or a sequence of them")
    for family in families:
        if clash := sorted(set(family.architectures) & set(reserved)):
            return Plugin(source, fault=f"{clash[0]} is already described by loadmaster")
        if family.runs:
            return Plugin(
                source, fault=f"the family {family.name} has runs=True, and only loadmaster's own families can run"
            )
    return Plugin(source, tuple(replace(f, schema=_guarded(f, source)) for f in families))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _guarded(family: Family, source: str) -> Callable[[Config], Schema]:
    """Return the family's schema function, with errors that name the family's package."""

    def schema(config: Config) -> Schema:
        try:
            described = family.schema(config)
            faults = fatal_faults(family, described)
        except LoadmasterError:
            raise
        except Exception as error:
            raise FamilyError(
                f"the family {family.name} of {source} fails on this config.json: {type(error).__name__}: {error}",
                hint="`loadmaster.testing.check_tables` reports what is wrong with a family",
            ) from error
        if faults:
            raise FamilyError(
                f"the family {family.name} of {source} is wrong: {faults[0]}"
                + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""),
                hint="`loadmaster.testing.check_tables` reports all that is wrong with a family",
            )
        return described

    return schema
