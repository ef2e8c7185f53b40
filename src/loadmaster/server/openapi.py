"""The OpenAPI schema: what FastAPI derives from the routes, and what it cannot know.

Routes read their bodies themselves, so that errors have the OpenAI API's form; FastAPI then knows neither the bodies of
answers nor the errors. A route that sets ``responses`` itself keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from loadmaster.server.gate import OPEN
from loadmaster.server.protocol.answers import ChatAnswer, CompletionAnswer, ErrorAnswer, Health, ModelCard, ModelList

ANSWERS: Final[Mapping[str, type[BaseModel]]] = {
    "/health": Health,
    "/v1/models": ModelList,
    "/v1/models/{name}": ModelCard,
    "/v1/completions": CompletionAnswer,
    "/v1/chat/completions": ChatAnswer,
}
"""The answers of routes, by path."""

STREAMED: Final = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Routes that answer with server-sent events if the request has ``"stream": true``."""

ERRORS: Final = {
    "get": (401, 500, 503),
    "post": (400, 401, 404, 413, 415, 500, 503),
}
"""The statuses of errors, by method. 401: no valid API key. 503: the model is loading, has failed, or shuts down."""

DESCRIPTION: Final = (
    "The OpenAI API, with vLLM's additional fields. If the server was started with an API key, all routes but those that show "
    "its state need it as a bearer token. While the model is loading, these routes answer 503."
)


def complete_schema(app: FastAPI) -> dict[str, Any]:
    """Return the schema of all routes, with answers, errors, and every reference resolved under ``components``."""
    schema = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = schema.setdefault("components", {})
    shared: dict[str, Any] = components.setdefault("schemas", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, method, operation in operations(schema):
        answers: dict[str, Any] = operation.setdefault("responses", {})
        answers.pop("422", None)  # bodies that are not valid get 400
        if (kind := ANSWERS.get(path)) is not None:
            content = {"application/json": {"schema": kind.model_json_schema()}}
            if path in STREAMED:
                content["text/event-stream"] = {"schema": {"type": "string"}}
            answers["200"] = {"description": _first_line(kind), "content": content}
        if path == "/health":
            answers["503"] = answers["200"]
        if path not in OPEN:
            operation["security"] = [{"key": []}]
            for code in ERRORS.get(method, ()):
                answers.setdefault(str(code), _error(code))
    _hoist(schema, shared)
    return schema


def operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the path, method and description of each operation."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _error(code: int) -> dict[str, Any]:
    content = {"application/json": {"schema": ErrorAnswer.model_json_schema()}}
    return {"description": HTTPStatus(code).phrase, "content": content}


def _first_line(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _hoist(value: Any, shared: dict[str, Any]) -> None:
    """Move every ``$defs``, which pydantic writes into each schema, to ``shared``, and let references point there."""
    if isinstance(value, dict):
        for name, definition in value.pop("$defs", {}).items():
            shared.setdefault(name, definition)
            _hoist(definition, shared)
        if isinstance(reference := value.get("$ref"), str):
            value["$ref"] = reference.replace("#/$defs/", "#/components/schemas/")
        for inner in list(value.values()):
            _hoist(inner, shared)
    elif isinstance(value, list):
        for inner in value:
            _hoist(inner, shared)
