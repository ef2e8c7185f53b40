"""Routes that say what the server is doing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from loadmaster import __version__
from loadmaster.engine import Loading
from loadmaster.server.failures import RETRY_AFTER, failure_object
from loadmaster.server.service import Service


def add_status_routes(app: FastAPI, service: Service) -> None:
    """Add ``/health`` and ``/ping``, which says the same by its status alone; ``/version``; ``/load``, vLLM's: the number of
    requests whose answers are being computed."""

    @app.get("/health")
    async def health() -> Response:
        """Whether requests are accepted: 200, or 503 with the reason and, while loading, the progress."""
        if service.failed is not None:
            return JSONResponse({"status": "failed", **failure_object(service.failed)}, 503)
        if (state := service.state) == "shutting down":
            return JSONResponse({"status": state}, 503, RETRY_AFTER)
        if state == "ready":
            return JSONResponse({"status": state})
        return JSONResponse({"status": state, **_of_loading(service.engine.loading())}, 503, {"Retry-After": "1"})

    @app.get("/live")
    async def live() -> Response:
        """Whether the process works: 200 also while it loads and while it shuts down."""
        if service.failed is not None:
            return JSONResponse({"status": "failed", **failure_object(service.failed)}, 503)
        return JSONResponse({"status": "alive"})

    @app.get("/ping")
    @app.post("/ping")
    async def ping() -> Response:
        answer = await health()
        return Response(status_code=answer.status_code, headers=RETRY_AFTER if answer.status_code == 503 else None)

    @app.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    @app.get("/load")
    async def load() -> Response:
        return JSONResponse({"server_load": service.num_generating})


def _of_loading(loading: Loading) -> dict[str, Any]:
    done, total = loading.loaded_bytes, loading.total_bytes
    return {
        "loaded_bytes": done,
        "total_bytes": total,
        "fraction": done / total if total else 0.0,
        "bytes_per_s": loading.bytes_per_s,
        "seconds_left": loading.seconds_left,
        "ranks": [asdict(rank) for rank in loading.ranks],
    }
