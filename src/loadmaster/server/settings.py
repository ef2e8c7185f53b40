"""What an operator decides about a server."""

from __future__ import annotations

from dataclasses import dataclass, field

SHUTDOWN_TIMEOUT_S = 5.0
"""How long running requests may continue by default after a signal to stop. A second signal ends them at once."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings; the defaults are those of ``loadmaster serve``.

    With ``api_keys``, every route below ``/v1`` requires one of them as a bearer token. After a signal to stop, running
    requests may continue for ``shutdown_timeout_s``.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    shutdown_timeout_s: float = SHUTDOWN_TIMEOUT_S
