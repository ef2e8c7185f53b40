"""A folder behind https://, of which only the files' names in its index are known."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from loadmaster.checkpoint.config import QUANTISATION
from loadmaster.checkpoint.index import INDEX_NAME, IndexRead, read_index
from loadmaster.checkpoint.lookalike import CONFIG
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.remote.files import ChangedFileError, MissingFileError, Part, RemoteFile, divided
from loadmaster.checkpoint.remote.http import Answer, Http, StatusError, shown_url
from loadmaster.checkpoint.repository import RUNNING
from loadmaster.checkpoint.source import no_checkpoint
from loadmaster.errors import CheckpointError
from loadmaster.limits import CONFIG_BYTES, INDEX_BYTES, Limit, LimitError

ONE_FILE = "model.safetensors"
"""The file of a checkpoint without an index."""
_SMALL = {INDEX_NAME: INDEX_BYTES, CONFIG: CONFIG_BYTES, QUANTISATION: CONFIG_BYTES}
_RUNNING = (
    *(name for name in RUNNING if "*" not in name),
    *("tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja", "tiktoken.model"),
)
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
        self._seen: dict[str, RemoteFile] = {}  # what the server stated with a file's first bytes

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
            self._small = dict(zip(_SMALL, pool.map(self._fetched, _SMALL, _SMALL.values()), strict=True))
        known = {n: RemoteFile() for n, content in self._small.items() if content is not None}
        if self.only is not None:
            return known | {self.only: RemoteFile()}
        if INDEX_NAME in known:
            index, _ = self._index
            return known | {n: RemoteFile() for n in (index.files if index else ())}
        try:
            self.part(ONE_FILE, 0, 8)
        except MissingFileError:
            raise no_checkpoint(
                f"{self._shown} has neither {INDEX_NAME} nor {ONE_FILE}",
                "give the URL of a folder that has one of them, or of one .safetensors file",
            ) from None
        return known | {ONE_FILE: RemoteFile()}

    def index(self) -> IndexRead:
        """Return the index, as the listing read it to find the shards."""
        return self._index

    @cached_property
    def _index(self) -> IndexRead:
        return read_index(self)

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file; configs and index were read with the listing."""
        content = self._small[name] if name in self._small else self._fetched(name, limit)
        if isinstance(content, LimitError):
            raise content
        if content is None:
            raise MissingFileError
        return content

    def _fetched(self, name: str, limit: Limit) -> bytes | LimitError | None:
        try:
            return self._http.read_whole(self._url(name), limit, self._secrets).data
        except LimitError as error:
            return error
        except StatusError as error:
            if error.status in _ABSENT or (error.status == 403 and name != CONFIG):
                return None  # a bucket that may not be listed answers with 403 for what it does not have
            raise self._refused(error) from error

    def running(self) -> Sequence[str]:
        """Return the names that files have which running needs: what a site has cannot be listed."""
        return _RUNNING

    def part(self, name: str, start: int, length: int) -> Part:
        """Return bytes of a file, which must be the one that its first bytes were of."""
        try:
            answer = self._http.read_range(self._url(name), start, length, self._secrets)
        except StatusError as error:
            if error.status in _ABSENT:
                raise MissingFileError from error
            raise self._refused(error) from error
        part = Part(answer.data, answer.size, _validator(answer))
        stated = RemoteFile(part.size, part.etag)
        if self._seen.setdefault(name, stated) != stated:
            raise ChangedFileError("it changed between two requests")
        return part

    def etag(self, name: str) -> str | None:
        """Return what the server stated with the first bytes of a file: its ETag, else when it was modified."""
        return self._seen[name].etag if name in self._seen else None

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


def _validator(answer: Answer) -> str | None:
    """Return what tells the file from an earlier or later one: its ETag, else the time of its last modification.

    Source: RFC 9110, section 8.8
    """
    headers = answer.headers[-1]
    return headers.get("etag") or headers.get("last-modified")
