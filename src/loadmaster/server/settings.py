"""What an operator decides about a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SHUTDOWN_TIMEOUT_S = 5.0
"""How long running requests may continue by default after a signal to stop. A second signal ends them at once."""


QUIET_ENDPOINTS = ("/health", "/live", "/metrics", "/status")
"""What monitoring asks for every few seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings; the defaults are those of ``loadmaster serve``.

    With ``api_keys``, the routes that vLLM protects (``/v1`` and others, not ``/tokenize``) require one of them as a bearer
    token. After a signal to stop, running requests may continue for ``shutdown_timeout_s``. ``strict`` refuses requests with
    fields that the server does not know; otherwise a header of the answer names them.

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
