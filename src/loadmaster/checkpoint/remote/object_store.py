"""A folder in an object store, ``s3://bucket/prefix`` or ``gs://bucket/prefix``, read with obstore.

Credentials, region and endpoint are those of obstore's environment variables (``AWS_…``, ``GOOGLE_…``), which are the usual
ones of the stores. Source: https://developmentseed.org/obstore/latest/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from loadmaster.checkpoint.index import IndexRead, read_index
from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.remote.files import ChangedFileError, MissingFileError, Part, RemoteFile, divided
from loadmaster.checkpoint.repository import RUNNING
from loadmaster.checkpoint.source import no_checkpoint
from loadmaster.errors import CheckpointError
from loadmaster.limits import Limit, LimitError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

T = TypeVar("T")

_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or AWS_SKIP_SIGNATURE=true for a public bucket; "
    "AWS_ENDPOINT_URL for another store than Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}


class ObjectFiles:
    """The objects under a prefix; `RemoteFiles`.

    Raises:
        CheckpointError: obstore is not installed, or the URL names no bucket.
    """

    def __init__(self, url: str, *, retry: RetryConfig | None = None) -> None:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise CheckpointError(
                f"{printable(url)} needs the package obstore, which is not installed",
                hint="pip install 'loadmaster[stores]'",
            ) from error
        parts = urlsplit(url)
        folder, self.only = divided(parts.path)
        """The one object that the URL names; None for a prefix."""
        if not parts.netloc:
            raise CheckpointError(f"{printable(url)} names no bucket", hint=f"give {parts.scheme}://bucket/prefix")
        self._kind = cast(Literal["s3", "gs"], parts.scheme)
        self._url = f"{parts.scheme}://{parts.netloc}{folder}/"
        self._shown = printable(url, 1000)
        retries: RetryConfig = retry or {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
        self._listing: dict[str, RemoteFile] = {}
        self._store = self._explained(lambda: from_url(self._url.rstrip("/"), retry_config=retries))

    @property
    def origin(self) -> Origin:
        """The URL."""
        return Origin(self._kind, self._shown, url=self._shown, is_local=False)

    @property
    def path(self) -> Path:
        """The last part of the prefix: a folder that does not exist."""
        return Path(self._url.rstrip("/").rpartition("/")[2])

    def listing(self) -> Mapping[str, RemoteFile]:
        """Return the objects directly under the prefix."""
        import obstore

        found = self._explained(lambda: obstore.list_with_delimiter(self._store))
        self._listing = {o["path"].rpartition("/")[2]: _stated(o) for o in found["objects"]}
        if not self._listing:
            raise no_checkpoint(f"{self._shown} has no objects", "check bucket and prefix")
        if self.only is not None and self.only not in self._listing:
            raise no_checkpoint(f"{self._shown} does not exist", "check bucket and prefix")
        return self._listing

    def index(self) -> IndexRead:
        """Return the index."""
        return read_index(self)

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small object."""
        size = self._listing[name].size or 0
        if size > limit.value:
            raise LimitError(limit, size)
        try:
            return self.part(name, 0, size).data if size else b""
        except (MissingFileError, ChangedFileError) as error:
            raise CheckpointError(
                f"{self._url}{name} changed while it was read", hint="run the command again"
            ) from error

    def part(self, name: str, start: int, length: int) -> Part:
        """Return bytes of an object, which must be the one that was listed."""
        import obstore

        listed = self._listing[name]
        end = start + length if listed.size is None else min(start + length, listed.size)

        def get() -> Part:
            result = obstore.get(self._store, name, options={"range": (start, end), "if_match": listed.etag})
            data = bytes(result.bytes())
            return Part(data, result.meta["size"], listed.etag)

        part = self._explained(get)
        if len(part.data) != min(end, part.size) - start:
            raise CheckpointError(
                f"{self._url}{name}: {end - start:,} bytes were requested, and {len(part.data):,} came",
                hint="try again",
            )
        return part

    def running(self) -> Sequence[str]:
        """Return those of the objects that running needs."""
        return [n for n in self._listing if any(fnmatchcase(n, pattern) for pattern in RUNNING)]

    def etag(self, name: str) -> str | None:
        """Return an object's ETag, as the listing states it."""
        return self._listing[name].etag

    def cache_key(self, name: str, size: int, etag: str | None) -> str | None:
        """Return the object's URL with its ETag."""
        return None if etag is None else f"{self._url}{name} {etag} {size}"

    def _explained(self, ask: Callable[[], T]) -> T:
        """Return what ``ask`` returns, and what obstore raises in words."""
        from obstore import exceptions

        try:
            return ask()
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise MissingFileError from error
        except exceptions.PreconditionError as error:
            raise ChangedFileError("it is not the object that was listed") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise CheckpointError(
                f"access to {self._shown} was refused: {_first(error)}", hint=_ACCESS[self._kind]
            ) from error
        except exceptions.BaseError as error:
            raise CheckpointError(f"{self._shown} cannot be read: {_first(error)}", hint=_ACCESS[self._kind]) from error


def _stated(entry: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(entry["size"], entry["e_tag"])


def _first(error: Exception) -> str:
    """Return the first line of an error, without what obstore adds for its developers."""
    return printable(str(error).strip().partition("\n")[0], 300)
