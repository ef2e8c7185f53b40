"""What an operator decides about a server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final, Literal

SHUTDOWN_TIMEOUT_S = 5.0
"""How long running requests may continue by default after a signal to stop. A second signal ends them at once."""

MAX_BODY_BYTES: Final = 16 * 2**20
"""A prompt of a million tokens has 5 MB as text and 7 MB as token ids."""

MAX_HEAD_BYTES: Final = 64 * 2**10
"""The largest request line and headers, together."""

MAX_HEADERS: Final = 256
"""The most headers of one request, as in vLLM."""

CLIENT_TIMEOUT_S: Final = 60.0
"""How long a client may take by default for one thing that the server waits for."""


@dataclass(frozen=True, slots=True)
class Cors:
    """Which pages of other origins a browser lets use the API: the header values of CORS. ``*`` allows all."""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of a server that speaks HTTPS, in PEM. ``ca_certs`` verify the certificates of clients."""

    certfile: str
    keyfile: str | None = None
    ca_certs: str | None = None
    cert_reqs: ssl.VerifyMode = ssl.CERT_NONE
    ciphers: str | None = None


QUIET_ENDPOINTS = ("/health", "/live", "/metrics", "/status")
"""What monitoring asks for every few seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings; the defaults are those of ``loadmaster serve``.

    With ``api_keys``, all routes but those in `loadmaster.server.gate.OPEN` require one of them as a bearer token. After a
    signal to stop, running requests may continue for ``shutdown_timeout_s``. A request whose Host header is none of
    ``allowed_hosts`` is refused, if there are any; ``*.example.org`` allows the hosts below a domain. ``root_path`` is
    the path under which a proxy shows the server.

    A request is refused while ``max_queue`` others wait, and ended ``request_timeout_s`` after the engine got it. A client
    may take ``client_timeout_s`` to send the head of a request, as long between two parts of its body, and as long to
    read anything of an answer. ``strict`` refuses requests with fields that the server does not know; otherwise a header of the
    answer names them.

    ``tool_call_parser`` and ``reasoning_parser`` are names of formats, "none", or None for what the model's chat template shows.

    Requests to ``quiet_endpoints`` are logged at DEBUG only. ``log_requests`` and ``log_outputs`` also log what is asked and
    answered, at most ``max_log_len`` characters or token ids of each. Names of metrics begin with ``metrics_prefix``.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    shutdown_timeout_s: float = SHUTDOWN_TIMEOUT_S
    strict: bool = False
    quiet_endpoints: tuple[str, ...] = QUIET_ENDPOINTS
    log_requests: bool = False
    log_outputs: bool = False
    max_log_len: int | None = None
    metrics_prefix: Literal["loadmaster", "vllm"] = "loadmaster"
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    cors: Cors | None = None
    tls: Tls | None = None
    allowed_hosts: tuple[str, ...] = ()
    root_path: str = ""
    max_body_bytes: int = MAX_BODY_BYTES
    max_head_bytes: int = MAX_HEAD_BYTES
    max_headers: int = MAX_HEADERS
    max_queue: int | None = None
    request_timeout_s: float | None = None
    client_timeout_s: float = CLIENT_TIMEOUT_S
