"""How two checkpoints differ, from headers and configs alone. Payload bytes are not read, so they are not compared.

Tensors that differ in the same way, and whose names differ only in their numbers (layer, expert), are one group: two
checkpoints of 100,000 tensors differ in a few dozen groups.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loadmaster.checkpoint.folder import Checkpoint
from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.table import Signature, TensorTable
from loadmaster.findings import Finding, ranges

Change = Literal["gained", "lost", "retyped", "reshaped", "retyped and reshaped"]


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that changed alike.

    ``pattern`` is their name with the numbers that occur, such as ``model.layers.3-77.mlp.experts.0-255.up_proj.weight``; where
    the group has fewer tensors than the pattern has combinations, ``num_tensors`` is less than the pattern suggests.
    ``before`` is None for tensors that were gained, ``after`` for those that were lost. ``first`` is one of their names.
    """

    change: Change
    pattern: str
    first: str
    num_tensors: int
    before: Signature | None
    after: Signature | None
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class ShardMove:
    """Tensors of the same dtype and shape that are in another shard than before."""

    before: str
    after: str
    num_tensors: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A key of config.json (nested keys joined by dots) with its values as JSON text; None where there is no such key."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class CheckpointDifference:
    """What differs between two checkpoints: groups of tensors by name, moves between shards, config keys, findings."""

    tensors: tuple[TensorGroup, ...]
    moves: tuple[ShardMove, ...]
    config: tuple[ConfigChange, ...]
    findings_lost: tuple[Finding, ...]
    findings_gained: tuple[Finding, ...]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.tensors or self.moves or self.config or self.findings_lost or self.findings_gained)


def compare_checkpoints(
    before: Checkpoint,
    after: Checkpoint,
    findings: tuple[tuple[Finding, ...], tuple[Finding, ...]] | None = None,
) -> CheckpointDifference:
    """Compare two checkpoints.

    ``findings`` are those to compare, before and after (None: those of the files).
    """
    was, now = findings if findings is not None else (before.findings, after.findings)
    return CheckpointDifference(
        tuple(_groups(before.table, after.table)),
        tuple(_moves(before, after)),
        tuple(_config(before.config or {}, after.config or {})),
        tuple(f for f in was if f not in now),
        tuple(f for f in now if f not in was),
    )


def _groups(before: TensorTable, after: TensorTable) -> Iterator[TensorGroup]:
    """Yield the groups, in order of the first name of each."""
    alike: dict[tuple[Change, str, Signature | None, Signature | None], list[tuple[str, int | None, int | None]]]
    alike = defaultdict(list)
    for name, i in before.ids.items():
        j = after.ids.get(name)
        was = before.signatures[before.signature[i]]
        now = None if j is None else after.signatures[after.signature[j]]
        if was != now:
            alike[_change(was, now), _template(name), was, now].append((name, i, j))
    for name, j in after.ids.items():
        if name not in before.ids:
            now = after.signatures[after.signature[j]]
            alike["gained", _template(name), None, now].append((name, None, j))
    for (change, _, was, now), members in sorted(alike.items(), key=lambda item: _sort_key(item[1][0][0])):
        yield TensorGroup(
            change=change,
            pattern=_pattern([name for name, _, _ in members]),
            first=members[0][0],
            num_tensors=len(members),
            before=was,
            after=now,
            before_bytes=sum(int(before.nbytes[i]) for _, i, _ in members if i is not None),
            after_bytes=sum(int(after.nbytes[j]) for _, _, j in members if j is not None),
        )


def _change(was: Signature | None, now: Signature | None) -> Change:
    if was is None or now is None:
        return "gained" if was is None else "lost"
    if was.shape == now.shape:
        return "retyped"
    return "reshaped" if was.dtype == now.dtype else "retyped and reshaped"


def _template(name: str) -> str:
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def _pattern(names: list[str]) -> str:
    """Return names that differ only in their numbers as one, with the numbers that occur at each place.

    >>> _pattern(["layers.0.up", "layers.1.up", "layers.4.up"])
    'layers.0-1,4.up'
    """
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(
        ranges(map(int, set(parts))).replace(" ", "") if parts[0].isdecimal() else parts[0] for parts in columns
    )


def _sort_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort names as people do: layer 9 before layer 10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in name.split("."))


def _moves(before: Checkpoint, after: Checkpoint) -> Iterator[ShardMove]:
    """Yield the tensors that are unchanged but for the shard that they are in, by both shards."""
    moved: dict[tuple[str, str], list[int]] = defaultdict(list)
    old, new = before.table, after.table
    for name, i in old.ids.items():
        j = new.ids.get(name)
        if j is not None and old.signatures[old.signature[i]] == new.signatures[new.signature[j]]:
            files = before.files[old.file[i]].name, after.files[new.file[j]].name
            if files[0] != files[1]:
                moved[files].append(int(old.nbytes[i]))
    for (was, now), sizes in sorted(moved.items()):
        yield ShardMove(was, now, len(sizes), sum(sizes))


def _config(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[ConfigChange]:
    was, now = dict(_flat(before)), dict(_flat(after))
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            yield ConfigChange(printable(key), was.get(key), now.get(key))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a config with their values as JSON text; an object that is not empty is its keys."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(inner, sort_keys=True)
