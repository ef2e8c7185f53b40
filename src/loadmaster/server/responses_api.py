"""``/v1/responses``: from a checked request to its answer, whole or streamed as events.

It is answered as a chat request is; only the bodies differ. Nothing is stored.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from loadmaster.server.body import body_of
from loadmaster.server.chat import chat_of as prompt_of
from loadmaster.server.events import NamedEventStream
from loadmaster.server.failures import describe_validation
from loadmaster.server.generation import (
    body_schema,
    check,
    choices_of,
    finish,
    params_of,
    run,
)
from loadmaster.server.logprobs import token_texts
from loadmaster.server.models import unknown_model
from loadmaster.server.protocol import FieldError
from loadmaster.server.protocol.responses import ResponseChatRequest, ResponsesRequest
from loadmaster.server.recorder import record_of
from loadmaster.server.response_object import ResponseObject
from loadmaster.server.responses import Choice
from loadmaster.server.service import Service


def add_responses_routes(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.post("/v1/responses", openapi_extra=body_schema(ResponsesRequest))
    async def responses(
        body: Annotated[ResponsesRequest, Depends(body_of(ResponsesRequest))], request: Request
    ) -> Response:
        body.check()
        chat = chat_of(body)
        chat.check(service.engine.capacity.max_num_seqs)
        if (unknown := unknown_model(service, chat.model)) is not None:
            return unknown
        if body.max_output_tokens is not None and body.max_output_tokens > service.engine.max_model_len:
            raise FieldError(
                f"max_output_tokens is {body.max_output_tokens}, expected at most {service.engine.max_model_len}, the "
                "model's length",
                "max_output_tokens",
            )
        params = await params_of(service, chat)
        prompt = await prompt_of(service, chat)
        params = prompt.after_reasoning(params)
        ids = chat.truncated(prompt.prompt_token_ids, service.engine.max_model_len)
        check(service, ids, params)
        [choice] = choices_of(ids, params, 1)
        choice.message = prompt.message()
        answer = ResponseObject(body, service.names[0], choice, token_texts(service.tokenizer))
        record = record_of(request)
        record.model = service.names[0]
        progress = run(service, [choice], replace(chat.text_options, keep=prompt.keep), record)
        if body.stream:
            return NamedEventStream(events(answer, progress), service.stopping, record)
        if (failed := await finish(service, progress, request)) is not None:
            return failed
        return JSONResponse(answer.whole())


def chat_of(body: ResponsesRequest) -> ResponseChatRequest:
    """Return the chat request with the same meaning.

    Raises:
        FieldError: it is not valid; names the field.
    """
    try:
        return body.chat()
    except ValidationError as error:
        raise FieldError(*describe_validation(error.errors(include_url=False, include_input=False))) from None


async def events(
    answer: ResponseObject, progress: AsyncGenerator[Choice, None]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a streamed answer, numbered from 0."""
    number = 0
    for event in answer.opening():
        yield {**event, "sequence_number": number}
        number += 1
    async with aclosing(progress):
        async for _ in progress:
            for event in answer.deltas():
                yield {**event, "sequence_number": number}
                number += 1
    for event in answer.closing():
        yield {**event, "sequence_number": number}
        number += 1
