"""Completions and chat completions: from a checked request to its answer, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from loadmaster.engine import params_of_choices
from loadmaster.errors import RequestError, clip
from loadmaster.server.body import body_of
from loadmaster.server.events import EventStream, finish_unless_ended
from loadmaster.server.failures import error_response, failure_response, outcome_of
from loadmaster.server.logprobs import token_texts
from loadmaster.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest, with_field
from loadmaster.server.recorder import record_of
from loadmaster.server.records import Record
from loadmaster.server.responses import Choice, Contents, Envelope
from loadmaster.server.service import Service, ShutdownError
from loadmaster.workers import SamplingParams

CLIENT_CLOSED_REQUEST = 499  # nginx's code; the client has left and does not read it


def add_generation_routes(app: FastAPI, service: Service) -> None:
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
    record = record_of(request)
    record.model = service.names[0]
    progress = run(service, choices, body.stop_strings, record)
    if body.stream:
        return EventStream(chunks(choices, progress, envelope), service.stopping, record)
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
        record.outcome = outcome_of(failures[0])
        return failure_response(failures[0])
    if choices[0].params.logprobs is None and choices[0].params.prompt_logprobs is None:
        return JSONResponse(envelope.whole(choices))
    # Candidates for each token of a long prompt take seconds to write. Streams go on meanwhile.
    return await service.in_thread(lambda: JSONResponse(envelope.whole(choices)))


async def run(
    service: Service, choices: Sequence[Choice], stop: Sequence[str], record: Record
) -> AsyncGenerator[Choice, None]:
    """Generate all choices together. Yield a choice each time it has text that was not sent, or has ended.

    Without a tokenizer there is no text, and each token counts.
    """
    tokens_count = not service.tokenizer.exists
    prompts = [(c.prompt_token_ids, c.params) for c in choices]
    async with aclosing(service.generate(prompts, stop, record)) as pieces:
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
