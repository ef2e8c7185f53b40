"""The API's routes: from a checked request to its answer, whole or streamed."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from loadmaster import __version__
from loadmaster.engine import params_of_choices
from loadmaster.errors import LoadmasterError, RequestError, clip
from loadmaster.server.body import body_of
from loadmaster.server.failures import RETRY_AFTER, error_object, error_response, failure_object, failure_response
from loadmaster.server.logprobs import token_texts
from loadmaster.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest, with_field
from loadmaster.server.responses import Choice, Contents, Envelope
from loadmaster.server.service import Service, ShutdownError
from loadmaster.workers import SamplingParams

FAREWELL_S = 0.5
"""How long a client may take to receive the event that reports the server's shutdown."""

CLIENT_CLOSED_REQUEST = 499  # nginx's code; the client has left and does not read it


def build_app(service: Service, api_key: str | None = None) -> FastAPI:
    """Return the API over ``service``. With ``api_key``, every route below ``/v1`` requires it as a bearer token."""
    app = FastAPI(title="Loadmaster", version=__version__)
    _add_status_routes(app, service)
    _add_generation_routes(app, service)
    _add_error_handlers(app)
    app.add_middleware(Gate, service=service, api_key=api_key)
    return app


def _add_status_routes(app: FastAPI, service: Service) -> None:
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


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    """Add completions and chat completions."""

    @app.post("/v1/completions", openapi_extra=_body_schema(CompletionRequest))
    async def completions(
        body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))], request: Request
    ) -> Response:
        body.check(service.engine.capacity.max_num_seqs)
        if (unknown := unknown_model(service, body)) is not None:
            return unknown
        params = body.params(service.engine.limits.sampling, None)
        choices: list[Choice] = []
        for prompt in body.prompts:
            ids = prompt if isinstance(prompt, list) else await service.encode(prompt, body.add_special_tokens)
            check(service, ids, params)
            echo = None
            if body.echo:
                echo = prompt if isinstance(prompt, str) else service.decode(ids)
            choices += choices_of(ids, params, body.num_choices, len(choices), echo=echo, only_echo=body.only_echo)
        return await answer(service, body, choices, request)

    @app.post("/v1/chat/completions", openapi_extra=_body_schema(ChatCompletionRequest))
    async def chat_completions(
        body: Annotated[ChatCompletionRequest, Depends(body_of(ChatCompletionRequest))], request: Request
    ) -> Response:
        body.check(service.engine.capacity.max_num_seqs)
        if (unknown := unknown_model(service, body)) is not None:
            return unknown
        params = body.params(service.engine.limits.sampling, None)
        ids = await service.encode_chat(
            body.conversation(),
            add_generation_prompt=body.add_generation_prompt,
            variables=body.chat_template_kwargs or {},
        )
        check(service, ids, params)
        return await answer(service, body, choices_of(ids, params, body.num_choices), request)


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the OpenAI API's form."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(LoadmasterError)
    @app.exception_handler(Exception)  # a bug: it is logged, too
    async def failed(_: Request, error: Exception) -> Response:
        return failure_response(error)


class Gate:
    """Checks the API key, then whether requests are accepted now, before every route but ``/health``."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None) -> None:
        self._app, self._service, self._api_key = app, service, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the routes, or answer it with an error."""
        if scope["type"] == "http" and scope["path"] != "/health":
            refusal = self._refusal(scope)
            if refusal is not None:
                return await refusal(scope, receive, send)
        try:
            with self._service.answering():
                return await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._service.stopping.is_set():
                raise
            return None  # the server is shutting down, and this client reads too slowly

    def _refusal(self, scope: Scope) -> Response | None:
        if self._api_key is not None and scope["path"].startswith("/v1"):
            authorization = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(authorization, f"Bearer {self._api_key}".encode()):
                return error_response(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
        if self._service.failed is not None:
            return JSONResponse(error_object(503, str(self._service.failed)), 503)
        if self._service.is_draining:
            return error_response(503, ShutdownError().message, headers={**RETRY_AFTER, "Connection": "close"})
        if not self._service.is_ready:
            done, total = self._service.engine.progress()
            return error_response(
                503,
                f"the model is loading: {done:,} of {total:,} bytes",
                headers=RETRY_AFTER,
            )
        return None


def _body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body for the OpenAPI schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


def unknown_model(service: Service, body: GenerationRequest) -> Response | None:
    """Return an error if a request names a model that is not served, else None."""
    if body.model is None or body.model in service.names:
        return None
    return error_response(
        404, f"the model {clip(repr(body.model))} does not exist; served: {', '.join(service.names)}", "model"
    )


def check(service: Service, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
    """Check a request against the model's limits.

    Raises:
        RequestError: it is refused; names the field where it is a parameter.
    """
    try:
        service.engine.check(prompt_token_ids, params)
    except RequestError as error:
        raise with_field(error) from None


def choices_of(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    num_choices: int,
    first: int = 0,
    *,
    echo: str | None = None,
    only_echo: bool = False,
) -> list[Choice]:
    """Return the choices of one prompt, numbered from ``first``."""
    return [
        Choice(first + i, prompt_token_ids, one, i == 0, echo, only_echo)
        for i, one in enumerate(params_of_choices(params, num_choices))
    ]


async def answer(service: Service, body: GenerationRequest, choices: Sequence[Choice], request: Request) -> Response:
    """Return the answer to a checked request, whole or as a stream. The request is cancelled if the client leaves."""
    envelope = Envelope(
        service.names[0],
        Contents(
            token_ids=bool(body.return_token_ids) or not service.tokenizer.exists,
            num_top=body.num_top,
            num_prompt_top=body.prompt_logprobs,
            usage_in_stream=body.include_usage,
        ),
        token_texts(service.tokenizer),
        is_chat=isinstance(body, ChatCompletionRequest),
        is_stream=body.stream,
    )
    progress = run(service, choices, body.stop_strings)
    if body.stream:
        return EventStream(chunks(choices, progress, envelope), service.stopping)
    failures: list[Exception] = []

    async def finish() -> None:
        try:
            async with aclosing(progress):
                async for _ in progress:
                    pass
        except Exception as error:
            failures.append(error)

    if not await finish_unless_ended(finish(), request.receive, service.stopping):
        if service.stopping.is_set():
            raise ShutdownError
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if failures:
        return failure_response(failures[0])
    if choices[0].params.logprobs is None and choices[0].params.prompt_logprobs is None:
        return JSONResponse(envelope.whole(choices))
    # Candidates for each token of a long prompt take seconds to write. Streams go on meanwhile.
    return await service.in_thread(lambda: JSONResponse(envelope.whole(choices)))


async def run(service: Service, choices: Sequence[Choice], stop: Sequence[str]) -> AsyncGenerator[Choice, None]:
    """Generate all choices together. Yield a choice each time it has text that was not sent, or has ended.

    Without a tokenizer there is no text, and each token counts.
    """
    tokens_count = not service.tokenizer.exists
    prompts = [(c.prompt_token_ids, c.params) for c in choices]
    async with aclosing(service.generate(prompts, stop)) as pieces:
        async for number, piece in pieces:
            choices[number].add(piece)
            if choices[number].has_news or tokens_count:
                yield choices[number]


async def chunks(
    choices: Sequence[Choice], progress: AsyncGenerator[Choice, None], envelope: Envelope
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a streamed answer, each with its choice's index."""
    for choice in choices:
        if (opening := envelope.opening(choice.index)) is not None:
            yield opening
    async with aclosing(progress):
        async for choice in progress:
            yield envelope.part(choice)
    if (closing := envelope.closing(choices)) is not None:
        yield closing


class EventStream(Response):
    """Server-sent events: one for each chunk, then ``[DONE]``. An error during the stream is an event too."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], stopping: asyncio.Event) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._chunks, self._stopping = chunks, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events. Stop early if the client leaves or the server shuts down."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not await finish_unless_ended(self._write(send), receive, self._stopping) and self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end(send, ShutdownError()), FAREWELL_S)

    async def _write(self, send: Send) -> None:
        failure: Exception | None = None
        try:
            async with aclosing(self._chunks):
                async for chunk in self._chunks:
                    await self._event(send, json.dumps(chunk, ensure_ascii=False, separators=(",", ":")))
        except Exception as error:
            failure = error
        await self._end(send, failure)

    async def _end(self, send: Send, failure: Exception | None) -> None:
        if failure is not None:
            await self._event(send, json.dumps(failure_object(failure)))
        await self._event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, send: Send, data: str) -> None:
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


async def finish_unless_ended(work: Coroutine[Any, Any, None], receive: Receive, stopping: asyncio.Event) -> bool:
    """Run ``work``; cancel it if the client leaves or the server stops. Return whether it finished."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(t) for t in (work, left(), stopping.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
