"""vLLM 0.33's models, as a difference to 0.32's: those that 0.32 describes have the same parameters.

Sources: the files named in `vllm_0_32`, ``qwen3_next`` and ``qwen3_5``, of 0.33.0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.targets import vllm_0_32
from loadmaster.architectures.targets.vllm import EMBEDDING, HEAD, Described, Version


def _qwen3_5(c: Config) -> str | None:
    """vLLM reads biases and scales of layers from keys of other architectures, and gates attention as the config says."""
    foreign = [k for k in ("attention_bias", "qkv_bias", "layer_scale") if c.flag(k)]
    if foreign:
        return f"{foreign[0]} is true"
    return None if c.flag("attn_output_gate", True) else "attn_output_gate is false"


def _qwen3_next(c: Config) -> str | None:
    """vLLM always has an untied head."""
    return _qwen3_5(c) or ("the head is tied to the embedding" if c.flag("tie_word_embeddings") else None)


def _inside(described: Described, wrapper: str, within: str = "language_model.") -> Described:
    """Return how vLLM implements a model around a language model, which has the prefix ``within`` there."""
    return replace(described, classes=(wrapper,), drafts=(), within=within)


_QWEN3_5 = Described(
    ("Qwen3_5ForCausalLM",),
    on_every_stage=(EMBEDDING,),
    keep=(("linear_attn.A_log", "F32"),),
    obstacle=_qwen3_5,
)

VERSION: Final = Version(
    "vllm-0.33",
    {
        **vllm_0_32.VERSION.described,
        "Qwen3NextForCausalLM": replace(
            _QWEN3_5, classes=("Qwen3NextForCausalLM",), on_every_stage=(EMBEDDING, HEAD), obstacle=_qwen3_next
        ),
        "Qwen3_5ForCausalLM": _QWEN3_5,
        "Qwen3_5MoeForCausalLM": replace(_QWEN3_5, classes=("Qwen3_5MoeForCausalLM",)),
        **{
            wrapper: _inside(_QWEN3_5, wrapper)
            for wrapper in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
        },
    },
)
