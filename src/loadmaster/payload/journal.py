"""The state file of a verification: what was found in each file that was read to its end.

JSON lines, appended as files are finished, so that a run which is interrupted goes on from there. A file's line counts for
just the file, the header and the checks that it was written for; a line that was not written to its end counts for nothing.
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
"""Raised whenever the checks change: what an older version found is found anew."""

_LONGEST: Final = 2**26
"""Bytes of a line; a longer one is not ours, and its parts count for nothing."""
_TITLE: Final = b'{"state of":"loadmaster verify"}'


@dataclass(frozen=True, slots=True)
class Entry:
    """What was found in one file. ``sha256`` is None where none was wanted.

    By tensor: ``blocks`` are digests of its parts, of twins alone; ``sketches`` what it is compared with its peers by;
    ``digests`` the SHA-256 of its bytes, None where none was wanted.
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

    def as_json(self) -> bytes:
        """Return one line."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["findings"] = [f.as_json() for f in self.findings]
        values["sketches"] = {
            n: [*s[:-2], s.hole and [*s.hole], s.groups and [*s.groups]] for n, s in self.sketches.items()
        }
        return orjson.dumps(values) + b"\n"


class Journal:
    """Reads a state file, and appends to it. Without a path it remembers nothing.

    Raises:
        UsageError: the file is there and is no state file; it is left alone.
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
        """Read all entries; return whether the last line is whole."""
        with path.open("rb") as file:
            line = file.readline(1000)
            if not line.startswith(_TITLE):
                raise UsageError(f"--resume {path}: the file is there, and is not a state file of this command")
            for line in iter(lambda: file.readline(_LONGEST), b""):
                entry = _entry(line)
                if entry is not None and _is_possible(entry):
                    self._entries[entry.key] = entry
        return line.endswith(b"\n")

    def find(self, key: str, *, hashed: bool, digested: bool = False) -> Entry | None:
        """Return what is recorded under a key.

        With ``hashed`` only if the file's SHA-256 was taken, with ``digested`` only if those of its tensors were.
        """
        entry = self._entries.get(key)
        if entry is None or (hashed and entry.sha256 is None) or (digested and entry.digests is None):
            return None
        return entry

    def add(self, entry: Entry) -> None:
        """Record a finished file. From any thread."""
        with self._lock:
            if self._file is not None:
                self._file.write(entry.as_json())
                self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _is_possible(entry: Entry) -> bool:
    """Return whether an entry is of the types that this command writes; a file may have been edited or made up."""
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


def _entry(line: bytes) -> Entry | None:
    try:
        value: dict[str, Any] = orjson.loads(line)
        findings = tuple(Finding(**{**f, "ranks": tuple(f["ranks"])}) for f in value.pop("findings"))
        sketches = {n: _sketch(*s) for n, s in value.pop("sketches").items()}
        return Entry(**value, findings=findings, sketches=sketches)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # cut off, or another version's


def _sketch(*values: Any) -> Sketch:
    mark, uniform, amplitude, least, greatest, hole, groups = values
    place = hole and (int(hole[0]), int(hole[1]))
    return Sketch(mark, uniform, amplitude, least, greatest, place, groups and Index(*groups))
