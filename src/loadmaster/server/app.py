"""The server's application: its routes, what requests pass before them, and how errors are answered."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from loadmaster import __version__
from loadmaster.errors import LoadmasterError
from loadmaster.server.failures import error_response, failure_response, outcome_of
from loadmaster.server.gate import Gate
from loadmaster.server.generation import add_generation_routes
from loadmaster.server.ignored import IgnoredFields
from loadmaster.server.metrics import add_metrics_route
from loadmaster.server.models import add_model_routes
from loadmaster.server.openapi import complete_schema
from loadmaster.server.page import add_pages
from loadmaster.server.recorder import Recorder, record_of
from loadmaster.server.responses_api import add_responses_routes
from loadmaster.server.service import Service
from loadmaster.server.settings import Cors
from loadmaster.server.status import add_status_routes
from loadmaster.server.tokenizer_api import add_tokenizer_routes
from loadmaster.server.unsupported import add_unsupported_routes


def build_app(service: Service) -> FastAPI:
    """Return the API over ``service``."""
    app = _App(service, title="Loadmaster", version=__version__)
    app.state.settings = service.settings
    add_status_routes(app, service)
    add_metrics_route(app, service)
    add_model_routes(app, service)
    add_generation_routes(app, service)
    add_responses_routes(app, service)
    add_tokenizer_routes(app, service)
    add_unsupported_routes(app)
    add_pages(app, service)
    _add_error_handlers(app)
    app.add_middleware(IgnoredFields)
    app.add_middleware(Gate, service=service)
    _add_cors(app, service.settings.cors)
    return app


class _App(FastAPI):
    """FastAPI, with `Recorder` around everything, also around the middleware that answers after a bug."""

    def __init__(self, service: Service, *, title: str, version: str) -> None:
        super().__init__(title=title, version=version, docs_url=None, redoc_url=None)
        self._service = service

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI schema, also of what FastAPI cannot derive from the routes."""
        self.openapi_schema = self.openapi_schema or complete_schema(self)
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        return Recorder(super().build_middleware_stack(), self._service)


def _add_cors(app: FastAPI, cors: Cors | None) -> None:
    """Answer browsers that ask whether a page of another origin may use the API. Outside the gate: they send no key."""
    if cors is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors.origins,
            allow_methods=cors.methods,
            allow_headers=cors.headers,
            allow_credentials=cors.credentials,
        )


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the OpenAI API's form."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(LoadmasterError)
    @app.exception_handler(Exception)  # a bug: it is logged, too
    async def failed(request: Request, error: Exception) -> Response:
        record_of(request).outcome = outcome_of(error)
        return failure_response(error)
