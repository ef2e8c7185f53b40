"""The page of the server's API: what happens for each route and each field of vLLM's and OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

from starlette.routing import Route

from loadmaster.engine import Tokenizer
from loadmaster.server.app import build_app
from loadmaster.server.protocol import ChatCompletionRequest, CompletionRequest
from loadmaster.server.protocol.fields import RequestModel
from loadmaster.server.protocol.responses import ResponsesRequest
from loadmaster.server.protocol.tokenizer import DetokenizeRequest, TokenizeRequest
from loadmaster.server.service import Service
from loadmaster.server.unsupported import UNSUPPORTED
from tools.pages import table
from tools.vllm_api import of_version, recorded

MODELS: Final[dict[str, type[RequestModel]]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""Route → the model of its body."""

INTRODUCTION: Final = """\
This page says for each route and each field of vLLM {vllm}, and of OpenAI's client {openai} what this server does with it.
[Generate and serve](../guides/serve.md) shows how to use them."""

FIELDS: Final = """\
**supported**: as vLLM and OpenAI define it. **without effect**: accepted, and it changes nothing, for the given reason.
**refused**: HTTP 400 with a message that names the field, unless the value is null or one of those that are given.

All other fields are unknown. The header `X-Loadmaster-Ignored-Fields` of the answer names them, also those inside
`stream_options` and inside parts of messages; with `serve --strict` they are refused."""


def parts() -> Iterator[str]:
    """Yield the page's parts."""
    known = recorded()
    yield INTRODUCTION.format(vllm=" and ".join(known["lacks"]), openai=known["openai_version"])
    yield "## Routes"
    rows = []
    for path in sorted({*known["routes"], *served_routes(), *UNSUPPORTED}):
        here = "supported" if path in served_routes() else f"404: {UNSUPPORTED.get(path, 'there is no such route')}"
        rows.append((f"`{path}`", _versions(known, "routes", path), here))
    yield table(("route", "vLLM", "here"), rows)
    yield "## Fields"
    yield FIELDS
    for route, model in MODELS.items():
        vllm, openai = known["vllm"][route], known["openai"].get(route, ())
        names = sorted({*vllm, *openai, *model.model_fields, *model.refused, *model.inert})
        yield f"### {route}"
        yield table(
            ("field", "vLLM", "OpenAI", "here"),
            (
                (f"`{n}`", _versions(known, route, n), "yes" if n in openai else "", what_happens(model, n))
                for n in names
            ),
        )


def _versions(known: dict[str, Any], key: str, name: str) -> str:
    """Return whether vLLM has a route or field; if not every recorded version has it, those that do."""
    having = [number for number in known["lacks"] if name in of_version(known, number)[key]]
    return "yes" if len(having) == len(known["lacks"]) else ", ".join(having)


def what_happens(model: type[RequestModel], name: str) -> str:
    """Return what the server does with a field.

    Raises:
        KeyError: the model does not know it.
    """
    if name in model.model_fields:
        return "supported"
    if name in model.inert:
        return f"without effect: {model.inert[name]}"
    accepted = ", ".join(f"`{_json(value)}`" for value in model.refused[name])
    return f"refused, except {accepted}" if accepted else "refused"


def served_routes() -> set[str]:
    """Return the paths that the server answers."""
    service = Service(cast(Any, SimpleNamespace(max_model_len=1)), cast(Tokenizer, None), ["model"])
    routes = [route for route in build_app(service).routes if isinstance(route, Route)]
    paths = {route.path.replace(":path}", "}") for route in routes}
    return paths - UNSUPPORTED.keys()


def _json(value: object) -> str:
    return json.dumps(value)
