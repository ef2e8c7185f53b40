"""``/tokenize`` and ``/detokenize``: the model's tokenizer, as vLLM's routes of these names have it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Response
from fastapi.responses import JSONResponse

from loadmaster.server.body import body_of
from loadmaster.server.chat import chat_token_ids
from loadmaster.server.generation import body_schema
from loadmaster.server.models import unknown_model
from loadmaster.server.protocol import FieldError
from loadmaster.server.protocol.tokenizer import DetokenizeRequest, TokenizeRequest
from loadmaster.server.service import Service


def add_tokenizer_routes(app: FastAPI, service: Service) -> None:
    """Add both routes. A text may be longer than the model's length."""

    @app.post("/tokenize", openapi_extra=body_schema(TokenizeRequest))
    async def tokenize(body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))]) -> Response:
        body.check()
        if (unknown := unknown_model(service, body.model)) is not None:
            return unknown
        if body.prompt is not None:
            ids = await service.encode(body.prompt, body.add_special_tokens is not False, any_length=True)
        else:
            chat = body.chat().model_copy(update={"add_special_tokens": bool(body.add_special_tokens)})
            ids = await chat_token_ids(service, chat, any_length=True)
        names = await service.in_thread(lambda: service.tokenizer.token_names(ids)) if body.return_token_strs else None
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": service.engine.max_model_len, "tokens": ids}
        return JSONResponse({**answer, "token_strs": names})

    @app.post("/detokenize", openapi_extra=body_schema(DetokenizeRequest))
    async def detokenize(body: Annotated[DetokenizeRequest, Depends(body_of(DetokenizeRequest))]) -> Response:
        if (unknown := unknown_model(service, body.model)) is not None:
            return unknown
        size = service.engine.limits.vocab_size
        stray = next((token for token in body.tokens if size is not None and token >= size), None)
        if stray is not None:
            raise FieldError(f"token id {stray} is not in the model's vocabulary of {size} tokens", "tokens")
        decode = service.tokenizer.decode
        text = await service.in_thread(lambda: decode(body.tokens, skip_special_tokens=False))
        return JSONResponse({"prompt": text})
