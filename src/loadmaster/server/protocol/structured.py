"""``response_format`` of OpenAI's API, and vLLM's ``structured_outputs``: what an answer has to look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loadmaster.errors import RequestError
from loadmaster.server.protocol.fields import FieldError
from loadmaster.workers import StructuredOutputs

Schema = dict[str, Any]


class NamedSchema(BaseModel):
    """``json_schema`` of a ``response_format``. The schema is always followed exactly, whether ``strict`` or not."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """``response_format``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputsFields(BaseModel):
    """``structured_outputs``. Exactly one of the first five is given, unless ``response_format`` says what is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: str | Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None


def structured_outputs(
    fields: StructuredOutputsFields | None, response_format: ResponseFormat | None
) -> StructuredOutputs | None:
    """Return what the answer has to look like; None: anything.

    Raises:
        FieldError: the fields are not valid, or both say what is wanted; names the field.
    """
    given = {} if fields is None else fields.model_dump(by_alias=True)
    kind = "text" if response_format is None else response_format.type
    if kind == "text":
        return None if fields is None else checked(given, "structured_outputs")
    assert response_format is not None
    return checked({**given, **_wanted(response_format)}, "response_format")


def _wanted(response_format: ResponseFormat) -> dict[str, Any]:
    if response_format.type == "json_object":
        return {"json_object": True}
    if response_format.json_schema is None or response_format.json_schema.schema_ is None:
        raise FieldError("response_format has no json_schema.schema", "response_format")
    return {"json": response_format.json_schema.schema_}


def checked(values: dict[str, Any], field: str) -> StructuredOutputs:
    """Return structured outputs with these values.

    Raises:
        FieldError: they are not valid; names ``field``, which they came from.
    """
    try:
        return StructuredOutputs(**values)
    except RequestError as error:
        raise in_field(error, field) from None


def in_field(error: RequestError, field: str) -> FieldError:
    """Return an error of `StructuredOutputs` as one of the field that they came from."""
    return FieldError(error.message.replace("structured_outputs", field, 1), field)
