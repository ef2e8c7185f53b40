"""Reads ranges of files over HTTP, and checks that each answer is the range that was requested.

A server may ignore the header ``Range`` and send the whole file with status 200: such an answer is refused before its body is
read. Redirects are followed, credentials are sent only to the host that they are for.
Source: RFC 9110, section 14 (range requests) and 15.4 (redirection).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import httpx2

from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.remote.files import CONNECTIONS
from loadmaster.checkpoint.remote.retry import REPEATED, Retry
from loadmaster.errors import CheckpointError
from loadmaster.limits import Limit, LimitError

_REDIRECTS = (301, 302, 303, 307, 308)
_HOPS = 5
_PAGE_BYTES = 2**16
"""Bytes that a page about an error or a redirect may have; the connection of a longer one is closed."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_EMPTY = re.compile(r"bytes \*/0")


class StatusError(Exception):
    """A server's answer that is neither content nor worth another attempt."""

    def __init__(self, status: int, url: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"HTTP status {status}")
        self.status, self.url, self.headers = status, url, headers


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes of a file, the ``size`` of the whole, and the ``url`` that sent them; ``headers`` are those of all answers up to it,
    the first one first.
    """

    data: bytes
    size: int
    url: str
    headers: tuple[Mapping[str, str], ...] = field(repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of a header in the last answer that has it."""
        return next((h[name] for h in reversed(self.headers) if name in h), None)


class _ShortError(Exception):
    """An answer that ended too early."""


class Http:
    """A client that reads ranges; keeps connections open, and repeats what fails for the moment."""

    def __init__(self, *, retry: Retry | None = None, timeout_s: float = 30.0) -> None:
        self._retry = retry or Retry()
        limits = httpx2.Limits(max_connections=2 * CONNECTIONS, max_keepalive_connections=2 * CONNECTIONS)
        timeout = httpx2.Timeout(timeout_s, connect=10.0)
        headers = {"User-Agent": "loadmaster", "Accept-Encoding": "identity"}
        self._client = httpx2.Client(limits=limits, timeout=timeout, headers=headers)

    def read_range(self, url: str, start: int, length: int, secrets: Mapping[str, str] | None = None) -> Answer:
        """Return ``length`` bytes from ``start`` on, fewer where the file ends. ``secrets`` are headers for the URL's host only.

        Raises:
            StatusError: the server refuses, or has no such file.
            CheckpointError: the server cannot be reached, does not send ranges, or redirects where nothing can be followed.
        """
        return self._repeated(url, secrets or {}, (start, length))

    def read_whole(self, url: str, limit: Limit, secrets: Mapping[str, str] | None = None) -> Answer:
        """Return a whole file of at most ``limit`` bytes.

        Raises:
            LimitError: it has more bytes.
            StatusError, CheckpointError: as `read_range` raises them.
        """
        answer = self._repeated(url, secrets or {}, None, limit)
        if len(answer.data) > limit.value:
            raise LimitError(limit, max(answer.size, len(answer.data)))
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Http:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repeated(
        self, url: str, secrets: Mapping[str, str], span: tuple[int, int] | None, limit: Limit | None = None
    ) -> Answer:
        attempt = 1
        while True:
            after: str | None = None
            try:
                return self._followed(url, secrets, span, limit)
            except StatusError as error:
                after = error.headers.get("retry-after")
                if error.status not in REPEATED or not self._retry.pause(attempt, after):
                    raise
            except (httpx2.TransportError, _ShortError) as error:
                if not self._retry.pause(attempt):
                    raise _unreachable(url, error, attempt) from error
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise _unreachable(url, error, attempt) from error
            attempt += 1

    def _followed(
        self, url: str, secrets: Mapping[str, str], span: tuple[int, int] | None, limit: Limit | None
    ) -> Answer:
        """Send a request, and follow its redirects."""
        asked = {} if span is None else {"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"}
        home, at = _host(url), url
        before: list[Mapping[str, str]] = []
        for _ in range(_HOPS + 1):
            headers = asked | (dict(secrets) if _host(at) == home else {})
            with self._client.stream("GET", at, headers=headers, follow_redirects=False) as response:
                before.append(response.headers)
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    _read(response, _PAGE_BYTES)
                    at = _target(at, response.headers["location"])
                    continue
                if span is None:
                    return _whole(response, at, tuple(before), limit)
                return _range(response, at, tuple(before), *span)
        raise CheckpointError(
            f"{shown_url(url)} redirects more than {_HOPS} times", hint="give the URL that it should lead to"
        )


def shown_url(url: str) -> str:
    """Return a URL without what may be secret: user, password and query.

    >>> shown_url("https://me:pw@host:8443/models/x/?token=1")
    'https://host:8443/models/x/'
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}", 1000)


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _target(url: str, location: str) -> str:
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or (scheme == "http" and urlsplit(url).scheme == "https"):
        raise CheckpointError(
            f"{shown_url(url)} redirects to {shown_url(target)}, which is not https",
            hint="give an https:// URL that does not leave https",
        )
    return target


def _whole(response: httpx2.Response, url: str, headers: tuple[Mapping[str, str], ...], limit: Limit | None) -> Answer:
    if response.status_code != 200:
        raise _status(response, url)
    _refuse_encoding(response, url)
    stated = response.headers.get("content-length", "")
    data = _read(response, limit.value + 1 if limit is not None else 2**63)
    return Answer(data, int(stated) if stated.isdecimal() else len(data), url, headers)


def _range(
    response: httpx2.Response, url: str, headers: tuple[Mapping[str, str], ...], start: int, length: int
) -> Answer:
    """Return the body of an answer to a range request.

    Raises:
        StatusError, CheckpointError: see `Http.read_range`.
        _ShortError: the body has fewer bytes than it should.
    """
    status = response.status_code
    stated = response.headers.get("content-range", "")
    if status == 416 and _EMPTY.fullmatch(stated):
        return Answer(b"", 0, url, headers)
    if status == 200:
        whole = response.headers.get("content-length", "")
        if start or not whole.isdecimal() or int(whole) > length:
            raise CheckpointError(
                f"{shown_url(url)}: the server sends the whole file instead of the requested range (HTTP status 200)",
                hint="headers can only be read from a server that supports range requests; else download the files first",
            )
        begin, end, size = 0, int(whole) - 1, int(whole)
    elif status == 206:
        if (match := _CONTENT_RANGE.fullmatch(stated)) is None:
            raise CheckpointError(
                f"{shown_url(url)}: the server's answer states no range and size (Content-Range: {printable(stated)!r})",
                hint="use a server that supports range requests as RFC 9110 describes them; else download the files first",
            )
        begin, end, size = map(int, match.groups())
    else:
        raise _status(response, url)
    _refuse_encoding(response, url)
    if begin != start or not begin <= end < min(size, start + length):
        raise CheckpointError(
            f"{shown_url(url)}: bytes {start:,} to {start + length - 1:,} were requested, and the server sent "
            f"bytes {begin:,} to {end:,} of {size:,}",
            hint="a proxy may be in between; else download the files first",
        )
    wanted = min(size, start + length) - start
    data = _read(response, wanted)
    if len(data) != wanted:
        raise _ShortError(f"an answer of {wanted:,} bytes ended after {len(data):,}")
    return Answer(data, size, url, headers)


def _read(response: httpx2.Response, most: int) -> bytes:
    """Return the first ``most`` bytes of a body. One that is not longer is read to its end, so that its connection is kept."""
    pieces, left = [], most
    for piece in response.iter_raw():
        pieces.append(piece[:left])
        left -= len(piece)
        if left < 0:
            break
    return b"".join(pieces)


def _status(response: httpx2.Response, url: str) -> StatusError:
    _read(response, _PAGE_BYTES)
    return StatusError(response.status_code, url, response.headers)


def _refuse_encoding(response: httpx2.Response, url: str) -> None:
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise CheckpointError(
            f"{shown_url(url)}: the server compresses its answer ({printable(encoding)}), although that was not accepted",
            hint="a proxy may be in between; else download the files first",
        )


def _unreachable(url: str, error: Exception, attempts: int) -> CheckpointError:
    text = printable((str(error).strip() or type(error).__name__).splitlines()[0])
    times = f" {attempts} times" if attempts > 1 else ""
    return CheckpointError(
        f"the connection to {shown_url(url)} failed{times}: {text}", hint="check the network and the name of the server"
    )
