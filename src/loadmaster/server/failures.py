"""Errors as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``, with vLLM's type names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from loadmaster.errors import LoadmasterError, RequestError, clip
from loadmaster.server.service import ShutdownError

MAX_MESSAGE_CHARACTERS = 2000
MAX_FAULTS = 8
"""Faults that one message lists."""


def error_object(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an answer with an HTTP ``status`` of 400 or more.

    What it repeats of a client's input was cut where it was repeated; that is made sure of here once more.
    """
    message = clip(message, MAX_MESSAGE_CHARACTERS).encode(errors="replace").decode()
    param = clip(param).encode(errors="replace").decode() if param is not None else None
    kinds = {400: "BadRequestError", 404: "NotFoundError"}
    kind = kinds.get(status) or HTTPStatus(status).phrase.title().replace(" ", "")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an answer with an HTTP ``status`` of 400 or more."""
    return JSONResponse(error_object(status, message, param), status, dict(headers or {}))


def failure_status(error: Exception) -> int:
    """Return 400 for a request that is refused, 503 for one that came too late, 500 for what is not the client's fault."""
    if isinstance(error, ShutdownError):
        return 503
    return 400 if isinstance(error, RequestError) else 500


def failure_object(error: Exception) -> dict[str, Any]:
    """Return the body for an error of this package, or another."""
    message = str(error) if isinstance(error, LoadmasterError) else f"internal error: {type(error).__name__}"
    return error_object(failure_status(error), message, getattr(error, "param", None))


def describe_validation(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return what is wrong with a body, one line a fault, and the first field at fault.

    >>> describe_validation([{"loc": ("prompt",), "msg": "Field required", "type": "missing"}])
    ('prompt: Field required', 'prompt')
    """
    lines: dict[str, None] = {}
    first = None
    for e in errors:
        path = [clip(str(p)) for p in e["loc"]]
        first = first or (path[0] if path else None)
        lines[f"{'.'.join(path)}: {clip(e['msg'])}" if path else clip(e["msg"])] = None
    listed = list(lines)[:MAX_FAULTS]
    more = [f"and {len(lines) - MAX_FAULTS:,} more"] if len(lines) > MAX_FAULTS else []
    return "\n".join(listed + more), first
