"""Routes of vLLM and OpenAI that this server does not have. They say so, with status 404 in the OpenAI API's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import FastAPI, Response

from loadmaster.server.failures import error_response

POOLING: Final = "the server generates text; it computes no embeddings, classes or scores"
AUDIO: Final = "the server takes and returns text alone"
LORA: Final = "LoRA adapters are not supported"
WEIGHTS: Final = "weights do not change while the server runs"
CONTROL: Final = "a running server is not controlled over HTTP"
STORED: Final = "responses are not stored"
OTHER: Final = "only the OpenAI API's completions, chat completions and responses are supported"

UNSUPPORTED: Final[Mapping[str, str]] = {
    "/v1/embeddings": POOLING,
    "/v2/embed": POOLING,
    "/pooling": POOLING,
    "/classify": POOLING,
    "/score": POOLING,
    "/v1/score": POOLING,
    "/rerank": POOLING,
    "/v1/rerank": POOLING,
    "/v2/rerank": POOLING,
    "/generative_scoring": POOLING,
    "/v1/audio/speech": AUDIO,
    "/v1/audio/transcriptions": AUDIO,
    "/v1/audio/translations": AUDIO,
    "/v1/realtime": AUDIO,
    "/v1/images/generations": AUDIO,
    "/v1/load_lora_adapter": LORA,
    "/v1/unload_lora_adapter": LORA,
    "/v1/responses/render": "prompts are not rendered without an answer; /tokenize returns their token ids",
    "/v1/chat/completions/render": "prompts are not rendered without an answer; /tokenize returns their token ids",
    "/v1/completions/render": "prompts are not rendered without an answer; /tokenize returns their token ids",
    "/v1/responses/{response_id}": STORED,
    "/v1/responses/{response_id}/cancel": STORED,
    "/v1/messages/render": OTHER,
    "/v1/chat/completions/derender": "answers are not made of token ids; /detokenize returns their text",
    "/v1/completions/derender": "answers are not made of token ids; /detokenize returns their text",
    "/v1/chat/completions/batch": "send a request for each conversation; requests are computed together",
    "/inference/v1/generate": "/v1/completions takes token ids, and returns them with return_token_ids",
    "/v1/decisions": OTHER,
    "/v1/messages": OTHER,
    "/v1/messages/count_tokens": OTHER,
    "/cohere/v2/chat": OTHER,
    "/v1/systemone": OTHER,
    "/invocations": OTHER,
    "/tokenizer_info": "the tokenizer's files are part of the checkpoint",
    "/server_info": "the server's configuration is its command line, and is not published",
    "/kv_event_sources": "the KV cache publishes no events",
    "/sleep": CONTROL,
    "/wake_up": CONTROL,
    "/is_sleeping": CONTROL,
    "/release_kv_cache_memory": CONTROL,
    "/pause": CONTROL,
    "/resume": CONTROL,
    "/is_paused": CONTROL,
    "/abort_requests": "a request is cancelled when its client closes the connection",
    "/reset_prefix_cache": CONTROL,
    "/reset_mm_cache": CONTROL,
    "/reset_encoder_cache": CONTROL,
    "/collective_rpc": CONTROL,
    "/start_profile": CONTROL,
    "/stop_profile": CONTROL,
    "/scale_elastic_ep": CONTROL,
    "/is_scaling_elastic_ep": CONTROL,
    "/fault_tolerance/apply": CONTROL,
    "/fault_tolerance/status": CONTROL,
    "/init_weight_transfer_engine": WEIGHTS,
    "/shutdown_weight_transfer_engine": WEIGHTS,
    "/start_weight_update": WEIGHTS,
    "/start_draft_weight_update": WEIGHTS,
    "/update_weights": WEIGHTS,
    "/finish_weight_update": WEIGHTS,
    "/update_weight_version": WEIGHTS,
    "/weight_info": WEIGHTS,
    "/weight_checker": WEIGHTS,
    "/get_world_size": WEIGHTS,
}
"""Path → why it is not supported. The first that matches answers."""


def add_unsupported_routes(app: FastAPI) -> None:
    """Answer the routes of `UNSUPPORTED`, whatever the method."""
    for path, reason in UNSUPPORTED.items():
        app.add_api_route(
            path, _refusal(path, reason), methods=["GET", "POST", "DELETE", "PUT", "PATCH"], include_in_schema=False
        )


def _refusal(path: str, reason: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        return error_response(404, f"{path} is not supported: {reason}")

    return refuse
