"""Reads a request's body up to a limit, parses it as strict JSON, and validates it. No client input causes a 500."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from loadmaster.errors import clip
from loadmaster.server.failures import describe_validation
from loadmaster.server.ignored import note_ignored
from loadmaster.server.protocol import FieldError
from loadmaster.server.protocol.fields import RequestModel

DISCARDED_BYTES: Final = 48 * 2**20
"""How much of a body that is too long is still read: many clients read no answer until they have sent everything."""

MAX_DEPTH: Final = 100
"""The deepest nesting of lists and objects: more than any API needs, less than Python's stack allows."""

MAX_PARTS: Final = 100_000
"""The most lists, objects, names and strings in one body. Each costs about a hundred times as much as a token id."""

MAX_VALUES: Final = 2_000_000
"""The most values in one body. Most of them are token ids."""

STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped surrogate: half of a character. Pairs of them match too."""

M = TypeVar("M", bound=RequestModel)


def body_of(kind: type[M]) -> Callable[[Request], Awaitable[M]]:
    """Return a function, for FastAPI's `Depends`, that reads a ``kind`` from a request.

    The function raises:
        HTTPException: 413, the body is too long; 415, its Content-Type is not JSON.
        FieldError: the body is not JSON, or not a valid ``kind``, or has unknown fields and the server's settings are
            strict; names the field if there is one.
    """

    async def read(request: Request) -> M:
        kind_of_body = request.headers.get("content-type", "none").split(";")[0].strip().lower()
        if not re.fullmatch(r"application/(.+\+)?json", kind_of_body):
            raise HTTPException(415, f"Content-Type is {clip(kind_of_body)}, expected application/json")
        value = parse(await _bytes(request, request.app.state.settings.max_body_bytes))
        try:
            body = kind.model_validate(value)
        except ValidationError as error:
            raise FieldError(*describe_validation(error.errors(include_url=False, include_input=False))) from None
        note_ignored(request.scope, body, strict=request.app.state.settings.strict)
        return body

    return read


def parse(body: bytes) -> Any:
    """Parse strict JSON: UTF-8, no NaN or infinity, no lone surrogates, at most `MAX_DEPTH` levels.

    Raises:
        FieldError: the body breaks one of these rules.
    """
    try:
        text = body.decode()
        _check_size(text)
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FieldError(f"the body is not UTF-8, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise FieldError(f"JSON decode error: {error.msg}, at character {error.pos}") from None
    except RecursionError:
        raise FieldError(f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError:  # from `int`: Python does not convert longer ones
        raise FieldError("JSON decode error: a number has more than 4300 digits") from None
    if text.count("{") + text.count("[") > MAX_DEPTH or SURROGATE.search(text):
        _walk(value)
    return value


async def _bytes(request: Request, max_bytes: int) -> bytes:
    content_length = request.headers.get("content-length", "")
    parts, num_bytes = [], 0
    async for part in _parts(request):
        num_bytes += len(part)
        if num_bytes <= max_bytes:
            parts.append(part)
        else:
            parts.clear()
        if num_bytes > max_bytes + DISCARDED_BYTES:
            break
    if num_bytes > max_bytes:
        is_stated = content_length.isdecimal() and len(content_length) < 20
        size = f"{int(content_length):,}" if is_stated else f"more than {max_bytes:,}"
        raise HTTPException(413, f"the body has {size} bytes, expected at most {max_bytes:,}")
    return b"".join(parts)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect:  # nobody reads this
        raise HTTPException(408, "the client has left before its request was complete") from None


def _no_constant(name: str) -> Any:
    raise FieldError(f"JSON decode error: {name} is not a number in JSON")


def _check_size(text: str) -> None:
    """Refuse, before parsing, a body that would take seconds to parse. Text inside strings is not counted."""
    if _num_parts(text) <= MAX_PARTS and text.count(",") <= MAX_VALUES:
        return
    if (text.count('"') - text.count('\\"')) // 2 <= MAX_PARTS:
        without_strings = STRING.sub("", text)
        if _num_parts(without_strings) <= MAX_PARTS and without_strings.count(",") <= MAX_VALUES:
            return
    raise FieldError(
        f"the body has more than {MAX_PARTS:,} lists, objects, names and strings, or more than {MAX_VALUES:,} values"
    )


def _num_parts(text: str) -> int:
    return text.count("[") + text.count("{") + text.count(":")


def _walk(value: Any) -> None:
    """Refuse values that are nested too deep, and strings with lone surrogates. Names the field."""
    level: list[tuple[Any, str | None]] = [(value, None)]
    for _ in range(MAX_DEPTH + 1):
        next_level: list[tuple[Any, str | None]] = []
        for item, field in level:
            if isinstance(item, str):
                _check_text(item, field)
            elif isinstance(item, dict):
                for name, inner in item.items():
                    _check_text(name, field)
                    if isinstance(inner, (str, list, dict)):
                        next_level.append((inner, name if field is None else field))
            elif isinstance(item, list):
                next_level.extend((inner, field) for inner in item if isinstance(inner, (str, list, dict)))
        if not next_level:
            return
        level = next_level
    raise FieldError(f"{clip(str(level[0][1]))} is nested more than {MAX_DEPTH} levels deep", level[0][1])


def _check_text(text: str, field: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = clip(field) if field is not None else "the name of a field"
        raise FieldError(
            f"{where} is not valid text: it has a lone surrogate, U+{ord(text[error.start]):04X}", field
        ) from None
