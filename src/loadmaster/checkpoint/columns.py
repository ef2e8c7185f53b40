"""Reads the headers of all shards into columns: threads read ahead, decoding and checks go file by file."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint.canonical import Header, read_canonical
from loadmaster.checkpoint.header import FETCH, HeaderError, check_header, check_length
from loadmaster.checkpoint.names import Names
from loadmaster.checkpoint.partial import PartialPaths
from loadmaster.checkpoint.regular import open_regular
from loadmaster.checkpoint.store import read_nothing_ahead
from loadmaster.checkpoint.table import Signature, TensorTable
from loadmaster.findings import Finding, joined
from loadmaster.limits import HEADER_BYTES, SIGNATURES, TENSORS, Limit

FIRST_READ_BYTES = 2**18
"""Bytes of the first read of each file: most headers fit."""
AHEAD, AHEAD_BYTES = 8, 2**22
"""How many headers are read ahead; a header longer than ``AHEAD_BYTES`` is not, so only one of those is in memory."""

MANY = 16
"""Up to this many findings of one kind are reported one by one, one for each file."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file: its size and ``header_bytes`` (where its data begins) in bytes, its time stamp (`Store.stamp`).

    ``digest`` is the SHA-256, in hex, of its name, size and header; empty where the headers were not read here.
    """

    name: str
    size: int
    header_bytes: int
    mtime_ns: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class HeaderText:
    """A header's text, its file's size and time stamp, and the SHA-256 of name, size and text.

    ``canonical`` is what `read_canonical` made of it, in the thread that read it.
    """

    text: bytes
    size: int
    mtime_ns: int
    digest: bytes
    canonical: Header | None


Read = HeaderText | HeaderError
"""A file's header, or why it has none."""


def read_headers(paths: PartialPaths, names: Sequence[str]) -> Iterator[Read]:
    """Yield each file's header text, in order; ``paths`` says where a file is.

    Threads read ahead. One at a time hashes and decodes what it read: several would wait for the GIL, and for memory.
    """
    decoding = Lock()

    def read(name: str, most: int = AHEAD_BYTES) -> Read | None:
        try:
            descriptor = open_regular(paths.path(name))
            try:
                stat = os.fstat(descriptor)
                read_nothing_ahead(descriptor)
                first = os.pread(descriptor, FIRST_READ_BYTES, 0)
                length = check_length(name, first, stat.st_size)
                if length > most:
                    return None
                whole = 8 + length <= len(first)
                text = first[8 : 8 + length] if whole else os.pread(descriptor, length, 8)
                with decoding:
                    digest = hashlib.sha256(f"{name}\0{stat.st_size}\0".encode())
                    digest.update(text)
                    canonical = read_canonical(text)
                return HeaderText(text, *paths.stamp(name, stat), digest.digest(), canonical)
            finally:
                os.close(descriptor)
        except HeaderError as error:
            return error
        except OSError as error:
            message = f"it cannot be read: {error.strerror or error}"
            dangling = error.errno == errno.ENOENT and paths.path(name).is_symlink()
            hint = "it is a link to a file that does not exist" if dangling else None
            return HeaderError(Finding("shard-unreadable", "error", message, file=name, hint=hint))

    with ThreadPoolExecutor(4) as pool:
        waiting = deque(pool.submit(read, n) for n in names[:AHEAD])
        for i, name in enumerate(names):
            yield waiting.popleft().result() or read(name, HEADER_BYTES.value) or _grown(name)
            if i + AHEAD < len(names):
                waiting.append(pool.submit(read, names[i + AHEAD]))


def _grown(name: str) -> HeaderError:
    return HeaderError(Finding("shard-unreadable", "error", "it changed while it was read", file=name))


class Columns:
    """Collects headers into columns, file by file, and the findings about them.

    ``unread`` are the findings of files that could not be read, ``dropped`` those of tensors that are left out: tensors of a
    wrong size, and the second of two with one name.
    """

    def __init__(self) -> None:
        self.files: list[ShardFile] = []
        self.findings: list[Finding] = []
        self.unread: dict[str, Finding] = {}
        self.dropped: dict[str, Finding] = {}
        self.digest = hashlib.sha256()
        self._text = bytearray()  # of all headers, with the names
        self._num_names = 0
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._signatures: dict[tuple[str, tuple[int, ...]], int] = {}
        self._full: Finding | None = None  # why no more files are read
        self._kinds: list[tuple[str, tuple[int, ...]]] = []  # the signatures by their numbers
        self._sizes: list[int] = []  # and their bytes

    def add(self, name: str, read: Read) -> None:
        """Add one file's header, or the reason why it has none."""
        if isinstance(read, HeaderError):
            self._unreadable(name, read.finding)
            return
        if self._full is not None:
            self._unreadable(name, replace(self._full, file=name))
            return
        try:
            header = check_header(name, read.text, read.canonical)
            self._check_number(name, TENSORS, self._num_names + len(header.names))
            self._check_number(name, SIGNATURES, len(self._signatures) + len(header.kinds))
        except HeaderError as error:
            self._unreadable(name, error.finding)
            return
        base = 8 + len(read.text)
        self.digest.update(read.digest)
        number = len(self.files)
        self.files.append(ShardFile(name, read.size, base, read.mtime_ns, read.digest.hex()))
        known = self._signatures
        numbers = np.array([known.setdefault(kind, len(known)) for kind in header.kinds], dtype=np.int32)
        self._measure(header.kinds)
        names, signature, begin, end = header.names, numbers[header.kind], header.begins, header.ends
        expected = np.array([self._sizes[n] for n in numbers.tolist()], dtype=np.int64)[header.kind]
        order = np.lexsort((end, begin))
        if (order[1:] < order[:-1]).any():
            names, signature, begin, end = names.take(order), signature[order], begin[order], end[order]
            expected = expected[order]
        keep = self._check(name, names, signature, begin, end, expected, read.size - base)
        if keep is not None:
            names, signature, begin, end = names.take(keep), signature[keep], begin[keep], end[keep]
        at = len(self._text)
        self._text += names.text.data
        self._num_names += len(names)
        file = np.full(len(names), number, dtype=np.int32)
        self._columns.append(
            (names.begins + at, names.ends + at, names.prints, file, begin + base, end - begin, signature)
        )

    def _check_number(self, file: str, limit: Limit, total: int) -> None:
        """Check that the total over all files, the next one included, is within a limit."""
        if total > limit.value:
            message = f"this file would make it {limit.exceeded(total)}; the file is not read"
            self._full = Finding("limit-exceeded", "error", message, file=file, hint=limit.hint)
            raise HeaderError(self._full)

    def _unreadable(self, name: str, finding: Finding) -> None:
        self.unread[name] = finding
        self.digest.update(f"{name}\0unreadable\0".encode())

    def _twice(self, names: Names, file: npt.NDArray[np.integer]) -> list[int]:
        """Report tensors that an earlier file also has, one finding for each two files; return their ids."""
        first = names.repeated()
        by_files: dict[tuple[int, int], list[str]] = defaultdict(list)
        for i, earlier in first.items():
            by_files[int(file[i]), int(file[earlier])].append(names[i])
        for (here, there), twice in by_files.items():
            more = f" (and {len(twice) - 1:,} more like it)" if len(twice) > 1 else ""
            hint = "the folder mixes two revisions, or shards were merged by hand: keep one of the two"
            message = f"it is also in {self.files[there].name}{more}"
            file_name = self.files[here].name
            finding = Finding("tensor-duplicate", "error", message, tensor=twice[0], file=file_name, hint=hint)
            self.findings.append(finding)
            self.dropped.update(dict.fromkeys(twice, finding))
        return list(first)

    def _measure(self, kinds: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Compute the bytes of new signatures; -1 where they are not a whole number, or too many."""
        for dtype, shape in kinds:
            if self._signatures[dtype, shape] == len(self._sizes):
                try:
                    size = Signature(dtype, shape).num_bytes
                except ValueError:
                    size = -1
                self._kinds.append((dtype, shape))
                self._sizes.append(size if size < 2**62 else -1)

    def _check(
        self,
        file: str,
        names: Names,
        signature: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        expected: np.ndarray,
        data: int,
    ) -> npt.NDArray[np.int64] | None:
        """Check that each tensor's bytes fit its signature, and that together they fill the file.

        Returns the tensors to keep, None for all: a tensor of a wrong size cannot be read.
        """
        wrong = np.flatnonzero(expected != end - begin)
        if len(wrong):
            self._extents(file, names, signature, begin, end, expected, wrong.tolist())
            return np.flatnonzero(expected == end - begin)
        starts, ends = np.append(begin, data), np.insert(end, 0, 0)
        gaps = np.flatnonzero(starts[:-1] != ends[:-1])
        if len(gaps):
            i = int(gaps[0])
            what = "overlap" if starts[i] < ends[i] else "leave a gap"
            before = names[i - 1] if i else "the header"
            self.findings.append(
                Finding(
                    "header-tiling",
                    "error",
                    f"{before} and {names[i]} {what}: one ends at byte {int(ends[i]):,}, the next begins at {int(starts[i]):,}",
                    tensor=names[i],
                    file=file,
                )
            )
        last = int(ends[-1])
        if last > data:
            self.findings.append(
                Finding(
                    "file-truncated",
                    "error",
                    f"its tensors end at byte {last:,} of the data, but the file ends at {data:,}: {last - data:,} missing",
                    file=file,
                    hint=FETCH,
                )
            )
        elif last < data:
            self.findings.append(
                Finding(
                    "file-overlong",
                    "error",
                    f"its tensors end at byte {last:,} of the data, but the file continues to {data:,}",
                    file=file,
                    hint="two files were written into one, or a download was resumed wrongly; fetch the shard again",
                )
            )
        return None

    def _extents(
        self,
        file: str,
        names: Names,
        signature: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        expected: np.ndarray,
        wrong: list[int],
    ) -> None:
        """Report the tensors whose bytes do not match their dtype and shape."""
        findings = []
        for i in wrong[:5]:
            dtype, shape = self._kinds[int(signature[i])]
            needs = f"needs {int(expected[i]):,} bytes" if expected[i] >= 0 else "is not a whole number of bytes"
            message = (
                f"{dtype} {list(shape)} {needs}, but the header gives it {int(end[i] - begin[i]):,} "
                f"({int(begin[i]):,} to {int(end[i]):,})"
            )
            findings.append(Finding("header-extent", "error", message, tensor=names[i], file=file))
        shown = joined(findings, count=len(wrong))
        self.findings += shown
        self.dropped.update({names[i]: shown[min(k, len(shown) - 1)] for k, i in enumerate(wrong)})

    def table(self) -> TensorTable:
        """Return the columns of all files added; report what several files have, and merge findings that many share."""
        none = [np.zeros(0, dtype=d) for d in (np.int64, np.int64, np.uint64, np.int32, np.int64, np.int64, np.int32)]
        columns = [np.concatenate(c) for c in zip(none, *self._columns, strict=True)]
        begins, ends, prints, file, start, nbytes, signature = columns
        names = Names(np.frombuffer(self._text, dtype=np.uint8), begins, ends, prints)
        if twice := self._twice(names, file):
            keep = np.delete(np.arange(len(names)), twice)
            file, start, nbytes, signature = file[keep], start[keep], nbytes[keep], signature[keep]
            names = names.take(keep)
        self._join()
        signatures = tuple(Signature(*k) for k in self._signatures)
        return TensorTable(names, file, start, nbytes, signature, signatures)

    def _join(self) -> None:
        """Merge findings that many files share; dropped tensors then refer to the merged finding."""
        alike: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            alike[finding.code].append(finding)
        merged: dict[Finding, Finding] = {}
        for findings in alike.values():
            if len(findings) > MANY:
                [one] = joined(findings, MANY)
                merged.update(dict.fromkeys(findings, one))
        self.findings = list(dict.fromkeys(merged.get(f, f) for f in self.findings))
        self.dropped = {tensor: merged.get(f, f) for tensor, f in self.dropped.items()}
