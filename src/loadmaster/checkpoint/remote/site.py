"""A folder behind https://, of which only the files' names in its index are known."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from loadmaster.checkpoint.config import QUANTISATION
from loadmaster.checkpoint.index import INDEX_NAME, read_index
from loadmaster.checkpoint.lookalike import CONFIG
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.remote.files import MissingFileError, Part, RemoteFile, divided
from loadmaster.checkpoint.remote.http import Answer, Http, StatusError, shown_url
from loadmaster.checkpoint.source import no_checkpoint
from loadmaster.errors import CheckpointError
from loadmaster.limits import CONFIG_BYTES, INDEX_BYTES, Limit, LimitError

ONE_FILE = "model.safetensors"
"""The file of a checkpoint without an index."""
_SMALL = {INDEX_NAME: INDEX_BYTES, CONFIG: CONFIG_BYTES, QUANTISATION: CONFIG_BYTES}
_ABSENT = (404, 410)


class SiteFiles:
    """The files under a URL; `RemoteFiles`.

    The URL's query, such as the signature of a container, is added to each file's URL; its user and password are sent to its
    host only.
    """

    def __init__(self, url: str, http: Http) -> None:
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        folder, name = divided(parts.path)
        self.only: str | None = None if name is None else unquote(name)
        """The name of the one file that the URL names; None for a folder."""
        self._prefix = urlunsplit((parts.scheme, host, f"{folder}/", "", ""))
        self._query = f"?{parts.query}" if parts.query else ""
        self._secrets = {"Authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if user else {}
        self._shown = shown_url(url)
        self._http = http
        self._small: dict[str, bytes | LimitError | None] = {}

    @property
    def origin(self) -> Origin:
        """The URL, without what may be secret."""
        return Origin("https", self._shown, url=self._shown, is_local=False)

    @property
    def path(self) -> Path:
        """The last part of the URL: a folder that does not exist."""
        return Path(unquote(urlsplit(self._prefix).path).rstrip("/").rpartition("/")[2] or "model")

    def listing(self) -> Mapping[str, RemoteFile]:
        """Return the small files that exist and the shards that the index names; their sizes are not known yet."""
        with ThreadPoolExecutor(len(_SMALL)) as pool:
            self._small = dict(zip(_SMALL, pool.map(self._fetched, _SMALL), strict=True))
        known = {n: RemoteFile() for n, content in self._small.items() if content is not None}
        if self.only is not None:
            return known | {self.only: RemoteFile()}
        if INDEX_NAME in known:
            index, _ = read_index(self)
            return known | {n: RemoteFile() for n in (index.weight_map.values() if index else ())}
        try:
            self.part(ONE_FILE, 0, 8)
        except MissingFileError:
            raise no_checkpoint(
                f"{self._shown} has neither {INDEX_NAME} nor {ONE_FILE}",
                "give the URL of a folder that has one of them, or of one .safetensors file",
            ) from None
        return known | {ONE_FILE: RemoteFile()}

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file, which was read with the listing."""
        content = self._small.get(name)
        if isinstance(content, LimitError):
            raise content
        return content or b""

    def _fetched(self, name: str) -> bytes | LimitError | None:
        try:
            return self._http.read_whole(self._url(name), _SMALL[name], self._secrets).data
        except LimitError as error:
            return error
        except StatusError as error:
            if error.status in _ABSENT or (error.status == 403 and name != CONFIG):
                return None  # a bucket that may not be listed answers with 403 for what it does not have
            raise self._refused(error) from error

    def part(self, name: str, start: int, length: int) -> Part:
        """Return bytes of a file."""
        try:
            answer = self._http.read_range(self._url(name), start, length, self._secrets)
        except StatusError as error:
            if error.status in _ABSENT:
                raise MissingFileError from error
            raise self._refused(error) from error
        return Part(answer.data, answer.size, _strong(answer))

    def _url(self, name: str) -> str:
        return f"{self._prefix}{quote(name)}{self._query}"

    def _refused(self, error: StatusError) -> CheckpointError:
        message = f"{shown_url(error.url)}: the server answers with HTTP status {error.status}"
        if error.status in (401, 403):
            return CheckpointError(
                message, hint="give a URL with its signature, or with user and password: https://user:password@host/…"
            )
        return CheckpointError(message, hint="check the URL" if error.status < 500 else "try again later")

    def cache_key(self, name: str, size: int, etag: str | None) -> str | None:
        """Return nothing: sizes and ETags are not known before a header is requested."""
        return None


def _strong(answer: Answer) -> str | None:
    """Return the ETag of the answer itself, if it names the exact bytes."""
    etag = answer.headers[-1].get("etag")
    return None if etag is None or etag.startswith("W/") else etag.strip('"')
