"""The fields of requests: the OpenAI API's, and vLLM's additional ones."""

from loadmaster.server.protocol.chat import ChatCompletionRequest
from loadmaster.server.protocol.completion import CompletionRequest
from loadmaster.server.protocol.fields import FieldError, with_field
from loadmaster.server.protocol.generation import GenerationRequest

__all__ = ["ChatCompletionRequest", "CompletionRequest", "FieldError", "GenerationRequest", "with_field"]
