"""Opens a checkpoint: reads all headers into columns, and reports where its files contradict each other."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadmaster.arguments import expect
from loadmaster.catalogue import ranked
from loadmaster.checkpoint.causes import Causes
from loadmaster.checkpoint.columns import Columns, ShardFile
from loadmaster.checkpoint.config import read_config
from loadmaster.checkpoint.index import INDEX_NAME, Index, IndexRead, as_stored, check_total, disagreements
from loadmaster.checkpoint.listing import (
    Listing,
    likely_shards,
    list_shards,
    refuse_foreign,
    report_missing,
    report_partial,
    report_unnamed,
)
from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.source import LocalFolder, Source
from loadmaster.checkpoint.table import TensorTable
from loadmaster.checkpoint.unread_files import report_unread
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.findings import Finding, joined


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of safetensors shards, as described by its headers, index and config; no payload is read.

    ``origin`` says where it came from, and whether its files are on disk; then ``path`` is their folder.
    ``digest`` is a SHA-256 over each file's name, size and header. ``findings`` are the defects of the files, and ``causes``
    says which of them explains a missing tensor. ``config`` (with what `read_config` adds) is None where it could not be read,
    which is also a finding.
    """

    path: Path
    files: tuple[ShardFile, ...]
    table: TensorTable = field(repr=False)
    config: dict[str, Any] | None = field(repr=False)
    index: Index | None = field(repr=False)
    findings: tuple[Finding, ...]
    digest: str
    causes: Causes = field(default=Causes(), repr=False)
    origin: Origin = field(default=Origin("folder", ""))

    @property
    def folder(self) -> Path:
        """The folder of the files, which must be on disk.

        Raises:
            LoadError: they are not; only their headers were read.
        """
        if not self.origin.is_local:
            raise LoadError(
                f"the files of {self.origin} are not on disk",
                hint="open it with fetch_model, which downloads what is wanted",
            )
        return self.path


def open_checkpoint(path: str | Path, origin: Origin | None = None) -> Checkpoint:
    """Open a folder of shards (with an index or without), a folder with one file, or one file.

    ``origin`` says where the folder came from, if it is more than a folder.

    Raises:
        ArgumentError: ``path`` is not a path, or ``origin`` not an `Origin`.
        CheckpointError: there is nothing to open. All other defects are in the checkpoint's findings.
    """
    expect("path", path, (str, Path), "the path of a folder or a file")
    expect("origin", origin, (Origin, type(None)), "an Origin, or None")
    path = Path(path)
    if not str(path).isprintable():
        message = f"the path {printable(str(path))} is not UTF-8, or has control characters"
        raise CheckpointError(message, hint="rename the folder, or open it through a link with another name")
    if path.is_file():
        refuse_foreign(path)
        return open_source(LocalFolder(path.parent, origin), path.name)
    return open_source(LocalFolder(path, origin))


def open_source(source: Source, only: str | None = None) -> Checkpoint:
    """Open the checkpoint of a source; with ``only``, the one file of that name.

    Raises:
        CheckpointError: there is nothing to open, or the source cannot be reached.
    """
    with _no_collection():
        return _open(source, only)


def _open(source: Source, only: str | None) -> Checkpoint:
    (index, about_index), listing, columns = _read(source, only)
    table = columns.table()
    of_file = _joined({f.file or "": f for f in report_missing(listing, index)} | columns.unread)
    unread, of_tensor = report_unread(source, listing, index, table) if listing.unread else ([], {})
    config, about_config = read_config(source)
    stale: list[Finding] = []
    if index is not None:
        names = [f.name for f in columns.files]
        if (same := as_stored(index, table, names)) is None:
            stale = disagreements(index, table, names, columns.dropped.keys())
        index = same or index
    findings = [
        *dict.fromkeys(of_file.values()),
        *joined(report_unnamed(listing)),
        *columns.findings,
        *unread,
        *about_index,
        *stale,
        *about_config,
        *joined(report_partial(listing)),
        *source.findings(),
    ]
    if index and not (of_file or stale or columns.dropped):
        findings += check_total(index, table.payload_bytes)
    causes = Causes(of_file, of_tensor | columns.dropped, index, next(iter(stale), None))
    files, digest = tuple(columns.files), columns.digest.hexdigest()
    return Checkpoint(source.path, files, table, config, index, ranked(findings), digest, causes, source.origin)


def _read(source: Source, only: str | None) -> tuple[IndexRead, Listing, Columns]:
    """Read the index, where there is one, and all headers.

    A folder's headers are read while its index is, those that the index should name; if it names others, these are read then.
    """
    found: IndexRead = None, ()
    if only is not None:
        return found, Listing((only,)), _headers(source, (only,), None)
    names = source.names()
    likely: tuple[str, ...] = ()
    columns = Columns()
    if source.has(INDEX_NAME) and source.origin.is_local:
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(source.index)
            likely = likely_shards(names)
            columns = _headers(source, likely, None)
            found = reading.result()
    elif source.has(INDEX_NAME):
        found = source.index()
    listing = list_shards(source, names, found[0])
    return found, listing, columns if listing.shards == likely else _headers(source, listing.shards, found[0])


def _headers(source: Source, shards: Sequence[str], index: Index | None) -> Columns:
    columns = Columns()
    for name, read in zip(shards, source.headers(shards, index), strict=True):
        columns.add(name, read)
    return columns


def _joined(by_file: Mapping[str, Finding]) -> dict[str, Finding]:
    """Join alike findings of missing or unreadable files; return each file's finding, joined or not."""
    alike: dict[str, list[str]] = defaultdict(list)
    for file, finding in by_file.items():
        alike[finding.code].append(file)
    joined_by_file: dict[str, Finding] = {}
    for files in alike.values():
        shown = joined([by_file[f] for f in files])
        joined_by_file.update(zip(files, shown if len(shown) == len(files) else shown * len(files), strict=True))
    return joined_by_file


@contextmanager
def _no_collection() -> Iterator[None]:
    """Turn the garbage collector off: decoding makes a million objects, and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
