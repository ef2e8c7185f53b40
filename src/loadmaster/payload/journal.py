"""The state file of a verification: the results of each file that was read completely.

JSON lines, appended as files are finished, so that an interrupted run can continue. A line is valid only for the same file,
header and checks. An incomplete line is ignored.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import orjson

from loadmaster.catalogue import CATALOGUE
from loadmaster.checkpoint.regular import kind_of
from loadmaster.errors import UsageError
from loadmaster.findings import Finding
from loadmaster.payload.sketch import Index, Sketch

VERSION: Final = 2
"""Increased whenever the checks change, so that results of older versions are not used."""

_LONGEST: Final = 2**26
"""Most bytes of a line; a longer one is not from this command and is ignored."""
_TITLE: Final = b'{"state of":"loadmaster verify"}'


@dataclass(frozen=True, slots=True)
class Entry:
    """The results of one file. ``sha256`` is None where it was not requested.

    By tensor: ``blocks`` are digests of its parts, for twins only; ``sketches`` are for the comparison with its peers;
    ``digests`` are the SHA-256 of its bytes, None where they were not requested.
    """

    key: str
    file: str
    size: int
    mtime_ns: int
    sha256: str | None
    findings: tuple[Finding, ...]
    blocks: dict[str, list[str]]
    sketches: dict[str, Sketch] = field(default_factory=dict)
    digests: dict[str, str] | None = None


class Journal:
    """Reads a state file and appends to it. Without a path nothing is kept.

    Raises:
        UsageError: the file exists and is not a state file; it is not changed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._file: BufferedWriter | None = None
        if path is None:
            return
        try:
            if path.exists() and (kind := kind_of(path.stat().st_mode)) is not None:
                raise UsageError(f"--resume {path}: it is {kind}, not a regular file")
            begun = path.exists() and path.stat().st_size > 0
            whole = self._read(path) if begun else True
            self._file = path.open("ab")
            self._file.write(b"" if begun else _TITLE + b"\n")
            self._file.write(b"" if whole else b"\n")  # end the line that was cut off
            self._file.flush()
        except OSError as error:
            raise UsageError(f"--resume {path}: {error.strerror or error}") from error

    def _read(self, path: Path) -> bool:
        """Read all entries; return whether the last line is complete."""
        with path.open("rb") as file:
            line = file.readline(1000)
            if not line.startswith(_TITLE):
                raise UsageError(f"--resume {path}: the file exists and is not a state file of this command")
            for line in iter(lambda: file.readline(_LONGEST), b""):
                entry = _entry(line)
                if entry is not None and _is_possible(entry):
                    self._entries[entry.key] = entry
        return line.endswith(b"\n")

    def find(self, key: str, *, hashed: bool, digested: bool = False) -> Entry | None:
        """Return the entry of a key.

        With ``hashed`` only if it has the file's SHA-256, with ``digested`` only if it has those of its tensors.
        """
        entry = self._entries.get(key)
        if entry is None or (hashed and entry.sha256 is None) or (digested and entry.digests is None):
            return None
        return entry

    def add(self, entry: Entry) -> None:
        """Record a finished file; may be called from any thread."""
        with self._lock:
            if self._file is not None:
                self._file.write(_line(entry))
                self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _is_possible(entry: Entry) -> bool:
    """Return whether an entry has the types that this command writes; the file may have been edited."""
    lists = entry.blocks.values() if isinstance(entry.blocks, dict) else [None]
    digests = [d for digests in lists for d in (digests if isinstance(digests, list) else [None])]
    texts = (entry.key, entry.file, *(f.message for f in entry.findings), *digests)
    named = (t for f in entry.findings for t in (f.tensor, f.param, f.file, f.hint) if t is not None)
    return (
        all(isinstance(t, str) for t in (*texts, *named))
        and (entry.sha256 is None or isinstance(entry.sha256, str))
        and all(f.code in CATALOGUE and f.severity in ("error", "warning", "note") for f in entry.findings)
        and all(isinstance(r, int) for f in entry.findings for r in f.ranks)
    )


def _line(entry: Entry) -> bytes:
    """Return an entry as one line; `_entry` reads it."""
    values = {name: getattr(entry, name) for name in entry.__slots__}
    values["findings"] = [f.as_json() for f in entry.findings]
    values["sketches"] = {
        n: [*s[:-2], s.hole and [*s.hole], s.groups and [*s.groups]] for n, s in entry.sketches.items()
    }
    return orjson.dumps(values) + b"\n"


def _entry(line: bytes) -> Entry | None:
    try:
        value: dict[str, Any] = orjson.loads(line)
        findings = tuple(Finding(**{**f, "ranks": tuple(f["ranks"])}) for f in value.pop("findings"))
        sketches = {n: _sketch(*s) for n, s in value.pop("sketches").items()}
        return Entry(**value, findings=findings, sketches=sketches)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # incomplete, or from another version


def _sketch(*values: Any) -> Sketch:
    mark, uniform, amplitude, least, greatest, hole, groups = values
    run = hole and (int(hole[0]), int(hole[1]))
    return Sketch(mark, uniform, amplitude, least, greatest, run, groups and Index(*groups))
