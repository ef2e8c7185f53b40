"""Collects the recorded SHA-256 of files: from manifests next to them, and from the Hugging Face hub's client.

- manifests in the folder, as coreutils' ``sha256sum`` and BSD's ``shasum --tag`` write them: ``SHA256SUMS``,
  ``sha256sum.txt`` and the like, ``*.sha256``, ``*.sha256sum``. A bare digest belongs to the file that the manifest is named
  after.
- the hub's cache: a snapshot's entry is a link to ``blobs/<etag>``, and the etag of a file in LFS is its SHA-256, 64 hex
  digits. Small files have a Git hash of 40 digits, which is ignored. Source:
  https://huggingface.co/docs/huggingface_hub/guides/manage-cache
- a download folder of the client: ``.cache/huggingface/download/<name>.metadata``, with the etag on the second line.
  Source: ``huggingface_hub/_local_folder.py``.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from loadmaster.checkpoint.regular import read_regular
from loadmaster.errors import UsageError
from loadmaster.findings import Finding
from loadmaster.limits import FOLDER_FILES, MANIFEST_BYTES

_MANIFEST: Final = re.compile(r"sha256sums?(\.(txt|asc))?|.+\.sha256(sums?)?", re.IGNORECASE)
_LINE: Final = re.compile(r"(?P<escaped>\\?)(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_TAGGED: Final = re.compile(r"(?P<escaped>\\?)SHA256 \((?P<name>.+)\) = (?P<sha256>[0-9a-fA-F]{64})")
_BARE: Final = re.compile(r"(?P<sha256>[0-9a-fA-F]{64})")
_ETAG: Final = re.compile(r"[0-9a-f]{64}")
_ARMOUR: Final = re.compile(r"-----BEGIN PGP SIGNATURE-----.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Record:
    """A SHA-256 (64 lower-case hex digits), and where it is recorded."""

    sha256: str
    source: str


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one folder, by file name. ``findings``: unreadable manifests, recorded files that are missing."""

    of: dict[str, tuple[Record, ...]]
    findings: tuple[Finding, ...] = ()


def read_records(folder: Path) -> Records:
    """Collect the records of a folder's files; lines about files in subfolders are ignored."""
    records: dict[str, list[Record]] = defaultdict(list)
    findings: list[Finding] = []
    paths = (p for p in islice(folder.iterdir(), FOLDER_FILES.value) if p.name.isprintable())
    names = sorted(p.name for p in paths if p.is_file() or _MANIFEST.fullmatch(p.name))
    for name in names:
        if _MANIFEST.fullmatch(name):
            findings += _read_manifest(folder / name, records)
        if record := _linked(folder / name) or _downloaded(folder, name):
            records[name].append(record)
    absent = sorted(records.keys() - set(names))
    findings += [
        Finding("sha256-record", "warning", f"{records[n][0].source} records it, but it is not in the folder", file=n)
        for n in absent
    ]
    return Records({n: tuple(dict.fromkeys(r)) for n, r in records.items() if n not in absent}, tuple(findings))


def read_sums(path: Path, folder: Path) -> Records:
    """Read any manifest of files, as `sha256sum` writes it, for the files of ``folder``.

    Raises:
        UsageError: it records nothing.
    """
    records: dict[str, list[Record]] = defaultdict(list)
    findings = [replace(f, severity="error") for f in _read_manifest(path, records)]
    if not records:
        raise UsageError(
            f"--against {path}: it is neither a manifest of tensors nor lines of SHA-256 and file names",
            hint="`loadmaster verify MODEL --write-manifest FILE`, or `sha256sum *.safetensors > FILE`, of a known-good copy",
        )
    absent = sorted(n for n in records if not (folder / n).is_file())
    findings += [
        Finding("sha256-record", "error", f"{path.name} records it, but it is not in the folder", file=n)
        for n in absent
    ]
    return Records({n: tuple(r) for n, r in records.items() if n not in absent}, tuple(findings))


def _read_manifest(path: Path, records: dict[str, list[Record]]) -> Iterator[Finding]:
    """Add a manifest's lines to ``records``; yield a finding for lines that are not records."""
    try:
        lines = _ARMOUR.sub("", read_regular(path, MANIFEST_BYTES).decode()).splitlines()
    except OSError as error:
        message = f"the manifest cannot be read: {error.strerror or error}"
        yield Finding("sha256-record", "warning", message, file=path.name)
        return
    except ValueError as error:
        yield Finding("sha256-record", "warning", f"the manifest cannot be read: {error}", file=path.name)
        return
    strange = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(("#", "-----BEGIN PGP", "Hash: ")):
            continue
        match = _LINE.fullmatch(line) or _TAGGED.fullmatch(line)
        if match:
            name = _unescaped(match["name"]) if match["escaped"] else match["name"]
        elif (match := _BARE.fullmatch(line.strip())) and path.stem:
            name = path.stem
        else:
            strange.append(number)
            continue
        name = name.removeprefix("./")
        if "/" not in name:
            records[name].append(Record(match["sha256"].lower(), path.name))
    if strange:
        message = f"line {strange[0]} is not a SHA-256 and a file name" + _more(len(strange) - 1)
        yield Finding("sha256-record", "warning", message, file=path.name)


def _more(count: int) -> str:
    return f" (and {count:,} more)" if count else ""


def _unescaped(name: str) -> str:
    return re.sub(r"\\([\\nr])", lambda m: {"\\": "\\", "n": "\n", "r": "\r"}[m[1]], name)


def _linked(path: Path) -> Record | None:
    if not path.is_symlink():
        return None
    target = Path(os.path.realpath(path))
    if target.parent.name == "blobs" and _ETAG.fullmatch(target.name):
        return Record(target.name, "the hub's cache")
    return None


def _downloaded(folder: Path, name: str) -> Record | None:
    try:
        path = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        text = read_regular(path, MANIFEST_BYTES).decode()
    except (OSError, ValueError):
        return None
    etag = [*text.splitlines(), "", ""][1].strip().lower()
    return Record(etag, "the hub's download record") if _ETAG.fullmatch(etag) else None
