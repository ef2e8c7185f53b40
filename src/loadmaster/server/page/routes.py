"""The pages at ``/`` and ``/docs``, and the data that the first shows: ``/status``."""

from __future__ import annotations

import time
from functools import cache

from fastapi import FastAPI, Request, Response

from loadmaster.report.page import page_style
from loadmaster.server.page.document import Document, asset
from loadmaster.server.page.reference import reference
from loadmaster.server.service import Service
from loadmaster.server.snapshot import Status, take_status


def add_pages(app: FastAPI, service: Service) -> None:
    """Add ``/``, ``/docs`` and ``/status``."""
    started = time.monotonic()
    style = page_style() + asset("style.css")
    index = Document(asset("index.html"), style + asset("index.css"), asset("index.js"))

    @cache
    def docs() -> Document:
        return Document(reference(app.openapi()), style + asset("docs.css"))

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return index.answer(request)

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def api(request: Request) -> Response:
        return docs().answer(request)

    @app.get("/status", response_model=Status)
    async def status(request: Request) -> Response:
        """The state of the server as numbers. Always 200; without a required API key only the state and loading."""
        answer = take_status(
            service,
            started=started,
            requires_key=bool(service.settings.api_keys),
            authorized=bool(request.state.has_key),
        )
        return Response(answer.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})
