"""Fields of a request that the server does not know: named in a header of the answer, or refused with ``--strict``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadmaster.errors import clip
from loadmaster.server.protocol import FieldError
from loadmaster.server.protocol.fields import RequestModel

HEADER: Final = "X-Loadmaster-Ignored-Fields"
"""The header that lists the fields of a request that have no effect because the server does not know them."""

MAX_NAMES: Final = 20
"""The most names in the header, and in an error."""

MAX_NAME_CHARACTERS: Final = 64
"""The longest name in the header, in encoded characters. A longer one is cut."""

STATE: Final = "ignored_fields"
"""The names are in the request's state under this key, between `note_ignored` and `IgnoredFields`."""


def unknown_fields(body: RequestModel) -> Iterator[str]:
    """Yield the names of fields that ``body`` has and its model does not, nested ones with their path."""
    yield from body.unknown_fields()
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, RequestModel):
            yield from (f"{name}.{inner}" for inner in unknown_fields(value))
        elif name in ("messages", "input") and isinstance(value, list):
            yield from _unknown_in_messages(name, value)


def _unknown_in_messages(field: str, messages: Sequence[Any]) -> Iterator[str]:
    """Yield what parts of content have besides their text. All else of a message is given to the chat template."""
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping):
                yield from (f"{field}[{i}].content[{j}].{name}" for name in part if name not in ("type", "text"))


def note_ignored(scope: Scope, body: RequestModel, *, strict: bool) -> None:
    """Keep the names of a request's unknown fields for the header of its answer.

    Raises:
        FieldError: there are such fields, and ``strict`` refuses them.
    """
    names = list(dict.fromkeys(unknown_fields(body)))
    if not names:
        return
    if strict:
        listed = ", ".join(clip(name) for name in names[:MAX_NAMES])
        more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
        raise FieldError(f"unknown fields: {listed}{more} (the server runs with --strict)", names[0])
    scope.setdefault("state", {})[STATE] = names


def header_value(names: Sequence[str]) -> str:
    """Return the header's value: at most `MAX_NAMES` names, percent-encoded so that they cannot end the header.

    >>> header_value(["foo", "stream_options.bar", "a: b\\r\\nSet-Cookie"])
    'foo, stream_options.bar, a%3A%20b%0D%0ASet-Cookie'
    """
    listed = [quote(name[:MAX_NAME_CHARACTERS], safe="[].")[:MAX_NAME_CHARACTERS] for name in names[:MAX_NAMES]]
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join(listed + more)


class IgnoredFields:
    """Adds the header to every answer, also a streamed one, whose request has unknown fields."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the header."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})

        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start" and (names := state.get(STATE)):
                header = (HEADER.lower().encode(), header_value(names).encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        return await self._app(scope, receive, with_header)
