"""Routes that say what the server is doing, and which models it serves."""

from __future__ import annotations

import time

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from loadmaster.server.failures import RETRY_AFTER, failure_object
from loadmaster.server.service import Service


def add_status_routes(app: FastAPI, service: Service) -> None:
    """Add ``/health`` and the list of models."""
    created = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        if service.failed is not None:
            return JSONResponse({"status": "failed", **failure_object(service.failed)}, 503)
        if service.is_draining:
            return JSONResponse({"status": "shutting down"}, 503, RETRY_AFTER)
        if service.is_ready:
            return JSONResponse({"status": "ready"})
        done, total = service.engine.progress()
        return JSONResponse(
            {
                "status": "loading",
                "loaded_bytes": done,
                "total_bytes": total,
                "fraction": done / total if total else 0.0,
            },
            503,
            {"Retry-After": "1"},
        )

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "id": name,
                        "object": "model",
                        "created": created,
                        "owned_by": "loadmaster",
                        "max_model_len": service.engine.max_model_len,
                    }
                    for name in service.names
                ],
            }
        )
