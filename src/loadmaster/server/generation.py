"""Completions and chat completions: from a checked request to its answer, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from loadmaster.engine import TextOptions, params_of_choices
from loadmaster.errors import RequestError
from loadmaster.server.body import body_of
from loadmaster.server.chat import chat_of
from loadmaster.server.events import EventStream, finish_unless_ended
from loadmaster.server.failures import failure_response, outcome_of
from loadmaster.server.logprobs import token_texts
from loadmaster.server.models import unknown_model
from loadmaster.server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    FieldError,
    GenerationRequest,
    with_field,
)
from loadmaster.server.protocol.structured import in_field
from loadmaster.server.recorder import record_of
from loadmaster.server.records import Record
from loadmaster.server.responses import Choice, Contents, Envelope, likeliest, usage
from loadmaster.server.service import Service, ShutdownError
from loadmaster.workers import SamplingParams

CLIENT_CLOSED_REQUEST = 499  # nginx's code; the client has left and does not read it


def add_generation_routes(app: FastAPI, service: Service) -> None:
    """Add completions and chat completions."""

    @app.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
    async def completions(
        body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))], request: Request
    ) -> Response:
        body.check(service.engine.capacity.max_num_seqs)
        if (unknown := unknown_model(service, body.model)) is not None:
            return unknown
        params = await params_of(service, body)
        choices: list[Choice] = []
        is_cut = body.truncate_prompt_tokens is not None
        for prompt in body.prompts:
            if isinstance(prompt, str):
                ids = await service.encode(prompt, body.add_special_tokens, any_length=is_cut)
            else:
                ids = prompt
            ids = body.truncated(ids, service.engine.max_model_len)
            check(service, ids, params)
            echo = None
            if body.echo:
                echo = prompt if isinstance(prompt, str) and not is_cut else service.decode(ids)
            choices += choices_of(ids, params, body.num_candidates, len(choices), echo=echo, only_echo=body.only_echo)
        return await answer(service, body, choices, request)

    @app.post("/v1/chat/completions", openapi_extra=body_schema(ChatCompletionRequest))
    async def chat_completions(
        body: Annotated[ChatCompletionRequest, Depends(body_of(ChatCompletionRequest))], request: Request
    ) -> Response:
        body.check(service.engine.capacity.max_num_seqs)
        if (unknown := unknown_model(service, body.model)) is not None:
            return unknown
        params = await params_of(service, body)
        chat = await chat_of(service, body)
        params = chat.after_reasoning(params)
        ids = body.truncated(chat.prompt_token_ids, service.engine.max_model_len)
        check(service, ids, params)
        choices = choices_of(ids, params, body.num_choices, echo=body.echoed)
        for choice in choices:
            choice.message = chat.message()
        return await answer(service, body, choices, request, chat.keep)


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body for the OpenAPI schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


async def params_of(service: Service, body: GenerationRequest) -> SamplingParams:
    """Return the sampling parameters of a checked request, with the model's defaults. Structured outputs are compiled.

    Raises:
        FieldError: a value is out of range, or refused; names the field.
    """
    body.check_length(service.engine.max_model_len)
    params = body.params(service.engine.limits.sampling, None)
    if body.bad_words:
        words = body.bad_words
        try:
            sequences = await service.in_thread(lambda: service.tokenizer.word_token_ids(words))
            params = replace(params, bad_words_token_ids=tuple(map(tuple, sequences)))
        except RequestError as error:
            raise FieldError(error.message, "bad_words") from None
    try:
        return await service.compiled(params)
    except RequestError as error:
        raise in_field(error, body.wanted_output()[1]) from None


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


async def answer(
    service: Service,
    body: GenerationRequest,
    choices: Sequence[Choice],
    request: Request,
    keep: frozenset[int] = frozenset(),
) -> Response:
    """Return the answer to a checked request, whole or as a stream. The request is cancelled if the client leaves.

    ``keep`` are special tokens whose text the choices need.
    """
    record = record_of(request)
    record.model = service.names[0]
    if body.request_id is not None:
        record.propose_id(body.request_id)
    envelope = Envelope(
        service.names[0],
        Contents(
            token_ids=bool(body.return_token_ids) or not service.tokenizer.exists,
            num_top=body.num_top,
            num_prompt_top=body.prompt_logprobs,
            usage_in_stream=body.include_usage,
            usage_in_chunks=body.usage_in_chunks,
            role=body.answer_role if isinstance(body, ChatCompletionRequest) else None,
            request_id=record.id,
        ),
        token_texts(service.tokenizer, as_ids=bool(body.return_tokens_as_token_ids)),
        is_stream=bool(body.stream),
    )
    options = replace(body.text_options, keep=keep)
    progress = run(service, choices, options, record, body.stream_interval or 1)
    if body.stream:
        return EventStream(chunks(choices, progress, envelope), service.stopping, record)
    if (failed := await finish(service, progress, request)) is not None:
        return failed
    kept = choices
    if isinstance(body, CompletionRequest):
        kept = likeliest(choices, body.num_candidates, body.num_choices)
    if choices[0].params.logprobs is None and choices[0].params.prompt_logprobs is None:
        return JSONResponse(envelope.whole(kept, usage(choices)))
    # Candidates for each token of a long prompt take seconds to write. Streams go on meanwhile.
    return await service.in_thread(lambda: JSONResponse(envelope.whole(kept, usage(choices))))


async def finish(service: Service, progress: AsyncGenerator[Choice, None], request: Request) -> Response | None:
    """Compute an answer to its end. Return the response if there is none: it failed, or the client has left.

    Raises:
        ShutdownError: the server is shutting down.
    """
    failures: list[Exception] = []

    async def work() -> None:
        try:
            async with aclosing(progress):
                async for _ in progress:
                    pass
        except Exception as error:
            failures.append(error)

    if not await finish_unless_ended(work(), request.receive, service.stopping):
        if service.stopping.is_set():
            raise ShutdownError
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if failures:
        record_of(request).outcome = outcome_of(failures[0])
        return failure_response(failures[0])
    return None


async def run(
    service: Service, choices: Sequence[Choice], options: TextOptions, record: Record, interval: int = 1
) -> AsyncGenerator[Choice, None]:
    """Generate all choices together. Yield a choice each time it has text that was not sent, or has ended.

    Between its first part and its last, a choice is yielded after ``interval`` tokens at the earliest. Without a
    tokenizer there is no text, and each token counts.
    """
    tokens_count = not service.tokenizer.exists
    prompts = [(c.prompt_token_ids, c.params) for c in choices]
    service.request_log.received(record, prompts)
    try:
        async with aclosing(service.generate(prompts, options, record)) as pieces:
            async for number, piece in pieces:
                choice = choices[number]
                choice.add(piece)
                choice.num_cached = record.answers[number].stream.num_cached
                if (choice.has_news or tokens_count) and choice.is_due(interval):
                    yield choice
    finally:
        service.request_log.answered(record, ((c.written, c.finish_reason) for c in choices))


async def chunks(
    choices: Sequence[Choice], progress: AsyncGenerator[Choice, None], envelope: Envelope
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a streamed answer, each with its choice's index."""
    for choice in choices:
        if (opening := envelope.opening(choice)) is not None:
            yield opening
    async with aclosing(progress):
        async for choice in progress:
            yield envelope.part(choice)
    if (closing := envelope.closing(choices)) is not None:
        yield closing
