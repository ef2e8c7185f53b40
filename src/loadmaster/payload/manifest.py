"""Manifests of a known-good copy: the dtype, shape and SHA-256 of every tensor.

A manifest shows what no check of values can: swapped tensors of the same shape, a shard of another revision, one flipped
bit. It does not depend on the division into files. ``loadmaster verify --write-manifest`` writes one, ``--against`` compares
with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from loadmaster.checkpoint import TensorTable
from loadmaster.errors import LoadError, UsageError
from loadmaster.findings import Finding, joined

_TITLE: Final = "loadmaster verify"
_VERSION: Final = 1
_LARGEST: Final = 2**30
"""Most bytes of a manifest. A million tensors take a fifth of it."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Stored(NamedTuple):
    """One tensor: dtype, shape, and SHA-256 of its bytes (64 lower-case hex digits)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Tensors by name, and where they were recorded. ``sound``: whether the recorded copy passed all checks."""

    tensors: Mapping[str, Stored]
    source: str
    sound: bool = True


def manifest_of(table: TensorTable, digests: Mapping[str, str], source: str, *, sound: bool) -> Manifest:
    """Return the manifest of the tensors in ``digests``, name → SHA-256."""
    tensors = {}
    for name, sha256 in digests.items():
        signature = table.signatures[int(table.signature[table.ids[name]])]
        tensors[name] = Stored(signature.dtype, tuple(signature.shape), sha256)
    return Manifest(tensors, source, sound)


def is_manifest(path: Path) -> bool:
    """Return whether a file is JSON, as a manifest of tensors is; a manifest of files is plain lines."""
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def read_manifest(path: Path) -> Manifest:
    """Read what `write_manifest` wrote.

    Raises:
        UsageError: it cannot be read, or is not a manifest of tensors.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        value = orjson.loads(path.read_bytes())
        if value["manifest_of"] != _TITLE or value["version"] != _VERSION:
            raise ValueError(f"it is not a manifest of version {_VERSION}")
        tensors = {n: Stored(t["dtype"], tuple(t["shape"]), t["sha256"]) for n, t in value["tensors"].items()}
        if not all(isinstance(t.dtype, str) and _SHA256.fullmatch(t.sha256) for t in tensors.values()):
            raise ValueError("a tensor has no dtype or SHA-256")
        return Manifest(tensors, path.name, value["sound"] is True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        hint = "`loadmaster verify MODEL --write-manifest FILE` writes one of a known-good copy"
        raise UsageError(f"--against {path}: not a manifest of tensors: {what}", hint=hint) from error


def check_writable(path: Path) -> None:
    """Check, before reading starts, that a manifest can be written and overwrites no other file.

    Raises:
        UsageError: another file has this name, or the folder is not writable.
    """
    if path.exists():
        try:
            read_manifest(path)
        except UsageError as error:
            raise UsageError(
                f"--write-manifest {path}: the file exists and is not a manifest of this command"
            ) from error
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"--write-manifest {path}: {path.parent} is not a writable folder")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, completely or not at all.

    Raises:
        LoadError: it cannot be written.
    """
    value = {
        "manifest_of": _TITLE,
        "version": _VERSION,
        "sound": manifest.sound,
        "tensors": {n: t._asdict() for n, t in sorted(manifest.tensors.items())},
    }
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LoadError(f"the manifest {path} cannot be written: {error.strerror or error}") from error


def differences(table: TensorTable, digests: Mapping[str, str], good: Manifest) -> Iterator[Finding]:
    """Yield the differences between a checkpoint and a known-good copy, by the SHA-256 of each tensor."""
    if not good.sound:
        message = f"the copy that {good.source} records was not sound when it was written"
        yield Finding("manifest-differs", "warning", message, file=good.source)
    read = manifest_of(table, digests, "", sound=True).tensors
    name_of: dict[Stored, str] = {}
    for name, stored in good.tensors.items():
        name_of.setdefault(stored, name)
    changed = []
    for name in sorted(read.keys() & good.tensors.keys()):
        if (a := read[name]) == (b := good.tensors[name]):
            continue
        if a[:2] != b[:2]:
            message = f"it is {a.dtype} {list(a.shape)}, but {b.dtype} {list(b.shape)} in {good.source}"
        elif a in name_of:
            message = f"its bytes are those of {name_of[a]} in {good.source}: the two are swapped"
        else:
            message = f"its SHA-256 is {a.sha256}, but {good.source} has {b.sha256}"
        changed.append(Finding("manifest-differs", "error", message, name, hint="fetch the shard that holds it again"))
    yield from joined(changed)
    missing = sorted(good.tensors.keys() - read.keys())
    yield from joined([_lone(n, f"{good.source} has it, but it was not read here") for n in missing])
    extra = sorted(set(table.names) - good.tensors.keys())
    yield from joined([_lone(n, f"{good.source} does not have it") for n in extra])


def _lone(name: str, message: str) -> Finding:
    return Finding(
        "manifest-differs", "error", message, name, hint="the two are not the same model, or files are missing"
    )
