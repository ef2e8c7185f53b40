"""A checkpoint that is not on disk, as a source: `RemoteFolder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from loadmaster.checkpoint.columns import Read
from loadmaster.checkpoint.index import Index, IndexRead
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.remote.cache import HeaderCache
from loadmaster.checkpoint.remote.files import HeaderProgress, RemoteFile, RemoteFiles
from loadmaster.checkpoint.remote.headers import HeaderReader, Tally
from loadmaster.findings import Finding, gib
from loadmaster.limits import Limit


class RemoteFolder:
    """The files at a remote place; `Source <loadmaster.checkpoint.source.Source>`.

    ``progress`` is called after each header, ``say`` receives one line about what was read. With ``keeps_heads`` the shards'
    first bytes stay in memory, for a download that begins with them.
    """

    def __init__(
        self,
        files: RemoteFiles,
        *,
        cache: HeaderCache | None,
        progress: HeaderProgress,
        say: Callable[[str], None],
        keeps_heads: bool = False,
    ) -> None:
        self._files = files
        self._listing: Mapping[str, RemoteFile] | None = None
        self._cache = cache
        self._progress = progress
        self._say = say
        self._reader = HeaderReader(files, cache, keeps_heads=keeps_heads)
        self._keeps_heads = keeps_heads

    @property
    def origin(self) -> Origin:
        """Where the files are."""
        return self._files.origin

    @property
    def path(self) -> Path:
        """The folder where they would be on disk."""
        return self._files.path

    @property
    def shown(self) -> str:
        """The origin's name."""
        return self._files.origin.name

    @property
    def tally(self) -> Tally:
        """What reading the headers took so far."""
        return self._reader.tally

    @property
    def files(self) -> RemoteFiles:
        """The files at the remote place."""
        return self._files

    @property
    def heads(self) -> Mapping[str, bytes]:
        """The first bytes of the shards whose headers were read."""
        return self._reader.heads

    def findings(self) -> list[Finding]:
        """Return nothing: what is wrong with a remote place is an error."""
        return []

    def names(self) -> Sequence[str]:
        """Return the names of all files."""
        return list(self._listed())

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return name in self._listed()

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file; what cannot be reached is a `CheckpointError`."""
        return self._files.read(name, limit)

    def index(self) -> IndexRead:
        """Return the index."""
        return self._files.index()

    def remedy(self, name: str) -> str | None:
        """Say nothing: the file is as it was published."""
        return None

    def headers(self, names: Sequence[str], index: Index | None) -> Iterator[Read]:
        """Yield each shard's header."""
        yield from self._reader.read_all(names, index, self._listed(), self._progress)
        if not names:
            return
        tally, origin = self.tally, self._files.origin
        kept = f", {tally.cached:,} of them from the cache" if tally.cached else ""
        ending = "" if self._keeps_heads else "; the shards are not downloaded"
        self._say(
            f"read {tally.headers:,} header(s) of {origin}{kept}: {gib(tally.fetched_bytes)} in "
            f"{tally.requests:,} request(s){ending}"
        )
        if self._cache is not None and self._cache.error is not None:
            self._say(f"the headers could not be kept for the next time: {self._cache.error}")

    def _listed(self) -> Mapping[str, RemoteFile]:
        if self._listing is None:
            self._listing = self._files.listing()
        return self._listing
