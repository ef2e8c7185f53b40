"""``POST /tokenize`` and ``POST /detokenize``, as vLLM has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from loadmaster.server.protocol.chat import ChatCompletionRequest
from loadmaster.server.protocol.fields import FieldError, Int64, RequestModel
from loadmaster.server.protocol.tools import check_tools


class TokenizeRequest(RequestModel):
    """A text (``prompt``) or a conversation (``messages``) to turn into token ids.

    Special tokens are added to a text by default, and not to a conversation, whose template writes them.
    """

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
    }

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None

    def check(self) -> None:
        """Refuse a request without a text and without a conversation, or with both, and fields of the other kind.

        Raises:
            FieldError: names the field.
        """
        self.refuse_unsupported()
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("expected either prompt or messages", "prompt")
        if self.prompt is not None:
            given = self.model_fields_set & OF_CHATS
            if given:
                raise FieldError(f"{min(given)} is only allowed with messages", min(given))
        if self.tools:
            check_tools(self.tools, None)

    def chat(self) -> ChatCompletionRequest:
        """Return a chat request with the same conversation."""
        names = {"messages", *OF_CHATS} & self.model_fields_set - ({"tools"} if not self.tools else set())
        return ChatCompletionRequest(**{name: getattr(self, name) for name in names})


OF_CHATS = frozenset(
    {"add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs", "tools"}
)
"""The fields that only a conversation can have."""


class DetokenizeRequest(RequestModel):
    """Token ids to turn into text."""

    model: str | None = None
    tokens: Annotated[list[Annotated[Int64, Field(ge=0)]], Field(fail_fast=True)]
