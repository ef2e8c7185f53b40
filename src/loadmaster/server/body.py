"""A request's body: read up to a limit, parsed as strict JSON, and made a request of. Nothing a client sends is a 500."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from loadmaster.errors import clip
from loadmaster.server.failures import describe_validation
from loadmaster.server.protocol import FieldError

MAX_BODY_BYTES: Final = 16 * 2**20
"""A prompt of a million tokens has 5 MB as text and 7 MB as token ids."""

DISCARDED_BYTES: Final = 64 * 2**20
"""So much of a body that is too long is still read, because clients read no answer before they have sent it."""

MAX_DEPTH: Final = 100
"""Lists and objects in one another: more than any API asks for, less than what ends Python's stack."""

MAX_PARTS: Final = 100_000
"""Lists, objects, names and strings in one body. They cost a hundred times what a token id does."""

MAX_VALUES: Final = 2_000_000
"""Values in one body: token ids, for the most part."""

STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""How half of a character that has no half is written; in whole characters, too."""

M = TypeVar("M", bound=BaseModel)


def body_of(kind: type[M]) -> Callable[[Request], Awaitable[M]]:
    """Return what makes a ``kind`` of a request, as FastAPI's `Depends` takes it.

    Raises (it, not this):
        HTTPException: 413, the body is too long; 415, it is said not to be JSON.
        FieldError: it is no JSON, or not what ``kind`` asks for; names the field where there is one.
    """

    async def read(request: Request) -> M:
        kind_of_body = request.headers.get("content-type", "none").split(";")[0].strip().lower()
        if not re.fullmatch(r"application/(.+\+)?json", kind_of_body):
            raise HTTPException(415, f"Content-Type is {clip(kind_of_body)}, expected application/json")
        value = parse(await _bytes(request))
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise FieldError(*describe_validation(error.errors(include_url=False, include_input=False))) from None

    return read


def parse(body: bytes) -> Any:
    """Return JSON as Python's values: UTF-8, numbers that are numbers, text that is text, nested within reason.

    Raises:
        FieldError: says what is wrong.
    """
    try:
        text = body.decode()
        _weigh(text)
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FieldError(f"the body is not UTF-8, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise FieldError(f"JSON decode error: {error.msg}, at character {error.pos}") from None
    except RecursionError:
        raise FieldError(f"the body is nested more than {MAX_DEPTH} deep") from None
    except ValueError:  # of `int`: Python converts no longer ones
        raise FieldError("JSON decode error: a number has more than 4300 digits") from None
    if text.count("{") + text.count("[") > MAX_DEPTH or SURROGATE.search(text):
        _walk(value)
    return value


async def _bytes(request: Request) -> bytes:
    stated = request.headers.get("content-length", "")
    parts, num_bytes = [], 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes <= MAX_BODY_BYTES:
            parts.append(part)
        else:
            parts.clear()
        if num_bytes > DISCARDED_BYTES:
            break
    if num_bytes > MAX_BODY_BYTES:
        size = f"{int(stated):,}" if stated.isdecimal() and len(stated) < 20 else f"more than {MAX_BODY_BYTES:,}"
        raise HTTPException(413, f"the body has {size} bytes, and at most {MAX_BODY_BYTES:,} are taken")
    return b"".join(parts)


def _no_constant(name: str) -> Any:
    raise FieldError(f"JSON decode error: {name} is not a number in JSON")


def _weigh(text: str) -> None:
    """Refuse what would keep the server busy for seconds, before it is parsed. What stands in strings doesn't count."""
    if _num_parts(text) <= MAX_PARTS and text.count(",") <= MAX_VALUES:
        return
    if (text.count('"') - text.count('\\"')) // 2 <= MAX_PARTS:
        strings_away = STRING.sub("", text)
        if _num_parts(strings_away) <= MAX_PARTS and strings_away.count(",") <= MAX_VALUES:
            return
    raise FieldError(
        f"the body has more than {MAX_PARTS:,} lists, objects, names and strings, or more than {MAX_VALUES:,} values"
    )


def _num_parts(text: str) -> int:
    return text.count("[") + text.count("{") + text.count(":")


def _walk(value: Any) -> None:
    """Refuse what is nested too deep, and strings that are not text, by the field that holds them."""
    level: list[tuple[Any, str | None]] = [(value, None)]
    for _ in range(MAX_DEPTH + 1):
        below: list[tuple[Any, str | None]] = []
        for item, field in level:
            if isinstance(item, str):
                _check_text(item, field)
            elif isinstance(item, dict):
                for name, inner in item.items():
                    _check_text(name, field)
                    if isinstance(inner, (str, list, dict)):
                        below.append((inner, name if field is None else field))
            elif isinstance(item, list):
                below.extend((inner, field) for inner in item if isinstance(inner, (str, list, dict)))
        if not below:
            return
        level = below
    raise FieldError(f"{clip(str(level[0][1]))} is nested more than {MAX_DEPTH} deep", level[0][1])


def _check_text(text: str, field: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = clip(field) if field is not None else "the name of a field"
        raise FieldError(
            f"{where} has a lone surrogate, U+{ord(text[error.start]):04X}: it is not text", field
        ) from None
