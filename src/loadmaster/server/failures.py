"""Errors in the OpenAI API's form: ``{"error": {"message", "type", "param", "code"}}``, with vLLM's type names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse

from loadmaster.errors import LoadmasterError, RequestError, clip
from loadmaster.server.records import Outcome
from loadmaster.server.service import QueueFullError, RequestTimeoutError, ShutdownError, SlowClientError

MAX_MESSAGE_CHARACTERS = 2000

RETRY_AFTER = {"Retry-After": "5"}
"""The header that names the seconds after which a client may try again."""

STATUSES: Final = {ShutdownError: 503, QueueFullError: 429, RequestTimeoutError: 504, RequestError: 400}

OUTCOMES: Final[dict[type[Exception], Outcome]] = {
    ShutdownError: "shut down",
    QueueFullError: "refused",
    RequestError: "refused",
    RequestTimeoutError: "timed out",
    SlowClientError: "cancelled",
}

MAX_DEFECTS = 8
"""The most defects of a body that one message lists."""


def error_object(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error with an HTTP ``status`` of 400 or more.

    Callers already clip the client's input that they quote; this clips the whole message as well.
    """
    message = clip(message, MAX_MESSAGE_CHARACTERS).encode(errors="replace").decode()
    param = clip(param).encode(errors="replace").decode() if param is not None else None
    kinds = {400: "BadRequestError", 404: "NotFoundError"}
    kind = kinds.get(status) or HTTPStatus(status).phrase.title().replace(" ", "")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an error response with an HTTP ``status`` of 400 or more."""
    return JSONResponse(error_object(status, message, param), status, dict(headers or {}))


def failure_status(error: Exception) -> int:
    """Return the HTTP status for an error: 500 for one that is not a client's fault nor a limit's."""
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return status
    return 500


def outcome_of(error: Exception) -> Outcome:
    """Return how a request ends that raised an exception."""
    for kind, outcome in OUTCOMES.items():
        if isinstance(error, kind):
            return outcome
    return "failed"


def failure_object(error: Exception) -> dict[str, Any]:
    """Return the body for any exception."""
    message = str(error) if isinstance(error, LoadmasterError) else f"internal error: {type(error).__name__}"
    return error_object(failure_status(error), message, getattr(error, "param", None))


def failure_response(error: Exception) -> JSONResponse:
    """Return the response for any exception."""
    status = failure_status(error)
    return JSONResponse(failure_object(error), status, RETRY_AFTER if status in (429, 503) else None)


def describe_validation(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return what is wrong with a body, one line for each defect, and the first field that has one.

    >>> describe_validation([{"loc": ("prompt",), "msg": "Field required", "type": "missing"}])
    ('prompt: Field required', 'prompt')
    """
    lines: dict[str, None] = {}
    first = None
    for e in errors:
        path = [clip(str(p)) for p in e["loc"]]
        first = first or (path[0] if path else None)
        lines[f"{'.'.join(path)}: {clip(e['msg'])}" if path else clip(e["msg"])] = None
    listed = list(lines)[:MAX_DEFECTS]
    more = [f"and {len(lines) - MAX_DEFECTS:,} more"] if len(lines) > MAX_DEFECTS else []
    return "\n".join(listed + more), first
