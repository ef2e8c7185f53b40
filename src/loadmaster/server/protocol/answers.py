"""The bodies of answers, for the OpenAPI schema alone: `loadmaster.server.responses` writes them.

A field that is only there if the request asks for it has a default here.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """An answer. It may have fields that are not listed."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(Answer):
    """What is wrong: ``code`` is the HTTP status, and ``param`` the field of the request, if it is one."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(Answer):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class TokenUsage(Answer):
    """The tokens of a request; a prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(Answer):
    """One answer to one prompt."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class CompletionAnswer(Answer):
    """The answer of ``/v1/completions``. In a stream, each event has the new text of one choice."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None


class ChatMessage(Answer):
    """The model's message."""

    role: str
    content: str | None


class ChatChoice(Answer):
    """One answer to the conversation. In a stream, ``delta`` is in the place of ``message``."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatAnswer(Answer):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage | None = None


class ModelCard(Answer):
    """A name that requests may use. ``max_model_len``: most tokens of prompt and answer together."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Answer):
    """The names of the model."""

    object: str
    data: list[ModelCard]


class Health(Answer):
    """``status`` is ``ready``, ``loading``, ``failed`` or ``shutting down``."""

    status: str
