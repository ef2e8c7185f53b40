"""A manifest of a known-good copy: of every tensor its number format, its shape, and the SHA-256 of its stored bytes.

What no check of values can see, a manifest shows: tensors of the same shape that changed places, a shard of another
revision, one bit that flipped. It holds for any division into files. ``loadmaster verify --write-manifest`` writes one, and
``--against`` compares with it.
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
"""Bytes; what is larger is no manifest. A million tensors take a fifth of it."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Stored(NamedTuple):
    """One tensor: number format, shape, and SHA-256 of its bytes (64 lower-case hex digits)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Tensors by name, and where they were recorded. ``sound``: whether the copy that they are of was."""

    tensors: Mapping[str, Stored]
    source: str
    sound: bool = True


def manifest_of(table: TensorTable, digests: Mapping[str, str], source: str, *, sound: bool) -> Manifest:
    """Return the manifest of tensors whose SHA-256 was taken."""
    made = {}
    for name, sha256 in digests.items():
        signature = table.signatures[int(table.signature[table.ids[name]])]
        made[name] = Stored(signature.dtype, tuple(signature.shape), sha256)
    return Manifest(made, source, sound)


def is_manifest(path: Path) -> bool:
    """Return whether a file is JSON, as a manifest of tensors is; manifests of files are lines."""
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def read_manifest(path: Path) -> Manifest:
    """Read what `write_manifest` wrote.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        value = orjson.loads(path.read_bytes())
        if value["manifest_of"] != _TITLE or value["version"] != _VERSION:
            raise ValueError(f"it is not one of version {_VERSION}")
        tensors = {n: Stored(t["dtype"], tuple(t["shape"]), t["sha256"]) for n, t in value["tensors"].items()}
        if not all(isinstance(t.dtype, str) and _SHA256.fullmatch(t.sha256) for t in tensors.values()):
            raise ValueError("a tensor has no number format or SHA-256")
        return Manifest(tensors, path.name, value["sound"] is True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        hint = "`loadmaster verify MODEL --write-manifest FILE` writes one of a known-good copy"
        raise UsageError(f"--against {path}: not a manifest of tensors: {what}", hint=hint) from error


def check_writable(path: Path) -> None:
    """Check, before anything is read, that a manifest can be written, and that nothing else is overwritten.

    Raises:
        UsageError: there is another file, or the folder cannot be written to.
    """
    if path.exists():
        try:
            read_manifest(path)
        except UsageError as error:
            raise UsageError(
                f"--write-manifest {path}: the file is there, and is not a manifest of this command"
            ) from error
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"--write-manifest {path}: {path.parent} is not a folder that can be written to")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all.

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
    """Yield how a checkpoint, by its tensors' SHA-256, differs from a known-good copy."""
    if not good.sound:
        message = f"the copy that {good.source} is of was not sound itself when it was written"
        yield Finding("manifest-differs", "warning", message, file=good.source)
    own = manifest_of(table, digests, "", sound=True).tensors
    places: dict[Stored, str] = {}
    for name, stored in good.tensors.items():
        places.setdefault(stored, name)
    changed = []
    for name in sorted(own.keys() & good.tensors.keys()):
        if (a := own[name]) == (b := good.tensors[name]):
            continue
        if a[:2] != b[:2]:
            message = f"it is {a.dtype} {list(a.shape)}, and in {good.source} {b.dtype} {list(b.shape)}"
        elif a in places:
            message = f"its bytes are those that {good.source} has of {places[a]}: the two changed places"
        else:
            message = f"its SHA-256 is {a.sha256}, and {good.source} has {b.sha256}"
        changed.append(Finding("manifest-differs", "error", message, name, hint="fetch the shard that holds it again"))
    yield from joined(changed)
    missing = sorted(good.tensors.keys() - own.keys())
    yield from joined([_lone(n, f"{good.source} has it, and it was not read here") for n in missing])
    extra = sorted(set(table.names) - good.tensors.keys())
    yield from joined([_lone(n, f"{good.source} does not have it") for n in extra])


def _lone(name: str, message: str) -> Finding:
    return Finding(
        "manifest-differs", "error", message, name, hint="the two are not the same model, or files are missing"
    )
