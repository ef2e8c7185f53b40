"""vLLM 0.33's models whose layers are of several kinds: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``qwen3_next``, ``qwen3_5`` and ``nemotron_h`` in ``vllm/model_executor/models``, and ``mamba_mixer2``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.targets.vllm import EMBEDDING, HEAD, NORM, Described
from loadmaster.architectures.targets.vllm_0_32 import untied


def _qwen3_5(c: Config) -> str | None:
    """vLLM reads biases and scales of layers from keys of other architectures, and gates attention as the config says."""
    foreign = [k for k in ("attention_bias", "qkv_bias", "layer_scale") if c.flag(k)]
    if foreign:
        return f"{foreign[0]} is true"
    return None if c.flag("attn_output_gate", True) else "attn_output_gate is false"


def _qwen3_next(c: Config) -> str | None:
    """vLLM always has an untied head."""
    return _qwen3_5(c) or untied(c)


def _inside(described: Described, wrapper: str, within: str = "language_model.") -> Described:
    """Return how vLLM implements a model around a language model, which has the prefix ``within`` there."""
    return replace(described, classes=(wrapper,), drafts=(), within=within)


_QWEN3_5 = Described(
    ("Qwen3_5ForCausalLM",),
    on_every_stage=(EMBEDDING,),
    keep=(("linear_attn.A_log", "F32"),),
    obstacle=_qwen3_5,
)

_NEMOTRON_H = Described(
    ("NemotronHForCausalLM",),
    modules=(
        ("mixer.experts.w1_weight", "mixer.experts.routed_experts.w13_weight"),
        ("mixer.experts.", "mixer.experts.routed_experts."),
        ("mixer.A_log", "mixer.A"),
    ),
    top=(("norm.", "norm_f."),),
    on_every_stage=(EMBEDDING, NORM, HEAD),
    keep=(("mixer.A", "F32"),),
    computed=("mixer.A",),  # -exp(A_log)
    obstacle=untied,
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "NemotronHForCausalLM": _NEMOTRON_H,
    "Qwen3NextForCausalLM": replace(
        _QWEN3_5, classes=("Qwen3NextForCausalLM",), on_every_stage=(EMBEDDING, HEAD), obstacle=_qwen3_next
    ),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen3_5MoeForCausalLM": replace(_QWEN3_5, classes=("Qwen3_5MoeForCausalLM",)),
    **{
        wrapper: _inside(_QWEN3_5, wrapper)
        for wrapper in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
    },
}
