"""vLLM 0.33's dense models whose layers are of one kind: architecture in config.json → how vLLM implements it (`vllm`).

Sources: the modules that ``registry.py`` names for them in ``vllm/model_executor/models``, of 0.33.0; for many of them it is
``transformers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param
from loadmaster.architectures.targets.vllm import EMBEDDING, HEAD, NORM, Described, without
from loadmaster.architectures.targets.vllm_0_32 import untied

EVERYTHING: Final = (EMBEDDING, NORM, HEAD)
WITH_BIAS: Final = (*EVERYTHING, "norm.bias")


def _tied(*keys: str) -> Callable[[Config], str | None]:
    """Return the obstacle of models whose head vLLM takes for the embedding, and which have no biases."""
    return lambda c: without(*keys)(c) if c.flag("tie_word_embeddings", True) else "the head is not the embedding"


_GRANITE: Final = Described(("GraniteForCausalLM",), sends=("hidden_states",))
OF_TRANSFORMERS: Final = Described(("TransformersForCausalLM",), sends=("hidden_states",))
"""Models of which vLLM has no class: it fuses the linear layers of transformers' class."""

_COHERE: Final = Described(
    ("CohereForCausalLM",), on_every_stage=(EMBEDDING, NORM), head=None, obstacle=_tied("attention_bias")
)

_HUNYUAN: Final = replace(
    OF_TRANSFORMERS,
    modules=(("self_attn.q_norm.", "self_attn.query_layernorm."), ("self_attn.k_norm.", "self_attn.key_layernorm.")),
)
_MTP: Final = "model.mtp_layers.{layer}."
_MIMO: Final = Described(
    ("MiMoForCausalLM",),
    drafts=("MiMoMTP",),
    draft_names=(
        ("eh_proj.", f"{_MTP}input_proj."),
        ("enorm.", f"{_MTP}token_layernorm."),
        ("hnorm.", f"{_MTP}hidden_layernorm."),
        ("shared_head.norm.", f"{_MTP}final_layernorm."),
        ("embed_tokens.", "model.embed_tokens."),
        ("", _MTP),
    ),
)

DESCRIBED: Final[Mapping[str, Described]] = {
    **dict.fromkeys(("ArceeForCausalLM", "CwmForCausalLM", "OlmoForCausalLM", "SeedOssForCausalLM"), OF_TRANSFORMERS),
    **dict.fromkeys(("Jais2ForCausalLM", "SmolLM3ForCausalLM", "VaultGemmaForCausalLM"), OF_TRANSFORMERS),
    "HunYuanDenseV1ForCausalLM": _HUNYUAN,
    **{
        name: Described((name,))
        for name in (
            "DeciLMForCausalLM",
            "Exaone4ForCausalLM",
            "Glm4ForCausalLM",
            "HyperCLOVAXForCausalLM",
            "NemotronForCausalLM",
            "PanguEmbeddedForCausalLM",
            "SolarForCausalLM",
            "Step1ForCausalLM",
            "TeleChat2ForCausalLM",
            "TeleFLMForCausalLM",
        )
    },
    **dict.fromkeys(("GraniteForCausalLM", "GraniteSWAForCausalLM"), _GRANITE),
    "Ministral3ForCausalLM": Described(("MistralForCausalLM",)),
    "ApertusForCausalLM": Described(
        ("ApertusForCausalLM",),
        modules=(
            ("input_layernorm.", "attention_layernorm."),
            ("post_attention_layernorm.", "feedforward_layernorm."),
        ),
    ),
    "CohereForCausalLM": _COHERE,
    "Cohere2ForCausalLM": _COHERE,
    "Ernie4_5ForCausalLM": Described(("Ernie4_5ForCausalLM",), obstacle=without("use_bias")),
    "GemmaForCausalLM": Described(("GemmaForCausalLM",), on_every_stage=EVERYTHING, obstacle=without("attention_bias")),
    "Gemma2ForCausalLM": replace(_COHERE, classes=("Gemma2ForCausalLM",), obstacle=_tied()),
    "InternLM3ForCausalLM": Described(("LlamaForCausalLM",), obstacle=without("bias")),
    "MiMoForCausalLM": _MIMO,
    "MiniCPMForCausalLM": Described(("MiniCPMForCausalLM",), on_every_stage=EVERYTHING),
    "MiniCPM3ForCausalLM": Described(
        ("MiniCPM3ForCausalLM",),
        on_every_stage=EVERYTHING,
        params=(
            Param("{block}.self_attn.q_a_proj.weight", ("attn.q_a",)),
            Param("{block}.self_attn.kv_a_proj_with_mqa.weight", ("attn.kv_a",)),
        ),
    ),
    "MuseGlimmerForCausalLM": Described(
        ("MuseGlimmerForCausalLM",),
        modules=(("self_attn.gate_proj.", "self_attn.output_gate_proj."),),
        on_every_stage=EVERYTHING,
        obstacle=untied,
    ),
    "OrionForCausalLM": Described(("OrionForCausalLM",), on_every_stage=WITH_BIAS, sends=("hidden_states",)),
    "Rnj1ForCausalLM": Described(("Rnj1ForCausalLM",), on_every_stage=EVERYTHING),
    "StableLmForCausalLM": Described(("StablelmForCausalLM",), on_every_stage=WITH_BIAS, sends=("hidden_states",)),
}
