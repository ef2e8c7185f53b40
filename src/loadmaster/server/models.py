"""Routes that list the names of the served model."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from loadmaster.errors import clip
from loadmaster.server.failures import error_response
from loadmaster.server.service import Service


def add_model_routes(app: FastAPI, service: Service) -> None:
    """Add the list of models, and each of them by its name, which may contain slashes."""
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "loadmaster",
            "root": service.names[0],
            "parent": None,
            "max_model_len": service.engine.max_model_len,
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card(name) for name in service.names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return unknown_model(service, name) or JSONResponse(card(name))


def unknown_model(service: Service, name: str | None) -> Response | None:
    """Return an error if ``name`` is that of a model that is not served, else None. No name is the served model."""
    if name is None or name in service.names:
        return None
    return error_response(
        404, f"the model {clip(repr(name))} does not exist; served: {', '.join(service.names)}", "model"
    )
