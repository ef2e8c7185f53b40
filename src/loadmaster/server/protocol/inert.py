"""Fields that are accepted and change nothing, each with the reason. They are not reported as ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

INERT: Final[Mapping[str, str]] = {
    "user": "names the end user for a provider's abuse checks; there are none here",
    "safety_identifier": "names the end user for a provider's abuse checks; there are none here",
    "metadata": "labels stored answers; none are stored",
    "service_tier": "there is one tier",
    "prompt_cache_key": "a hint where to look for a cached prompt; there is one cache, and it is always searched",
    "prompt_cache_options": "hints for a provider's cache; there is one cache, and it is always searched",
    "prompt_cache_retention": "a hint how long to keep a cached prompt; prompts stay until their pages are needed",
    "prediction": "a guess of the answer that can only make it faster, never another one",
    "session_id": "a hint which server to choose; there is one engine",
    "spaces_between_special_tokens": "the tokenizer's own decoder joins special tokens",
    "return_token_offsets": "of vLLM's render endpoints; vLLM ignores it here too",
    "mm_payload": "of vLLM's render endpoints; vLLM ignores it here too",
    "return_mm_kwargs": "of vLLM's render endpoints; vLLM ignores it here too",
}
"""Field → why it has no effect."""

OF_STREAM_OPTIONS: Final[Mapping[str, str]] = {
    "include_obfuscation": "a provider's padding of chunks; chunks are not padded",
}
"""Key of ``stream_options`` → why it has no effect."""
