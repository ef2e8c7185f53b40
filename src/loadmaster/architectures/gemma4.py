"""Gemma-4: dense, with experts beside the dense MLP, and with per-layer embeddings (E2B, E4B); the towers are waived.

Layers without a window have other heads, and with ``attention_k_eq_v`` no values: keys serve as both. The last
``num_kv_shared_layers`` layers read the KV cache of the last layer of their type before them, so no cut may lie between. With
per-layer embeddings, what all layers need of these is computed on the first stage, and crosses every cut.

Sources: ``gemma4`` of transformers 5.24 and of ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import FULL, SLIDING, require, windows_by_type, with_full_sizes
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
    Carried,
    Family,
    Param,
    Schema,
    Tensor,
    by_vocabulary,
    embedding,
    joined,
    linear,
)
from loadmaster.architectures.shared_kv import last_sources, unread
from loadmaster.architectures.spelling import Spelling, packed, respelled

_OF_FULL = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "attention_bias", False)
    num_layers = c.size("num_hidden_layers", 30)
    ple = c.size("hidden_size_per_layer_input", 256, least=0)
    types = [SLIDING if (layer + 1) % 6 else FULL for layer in range(num_layers - 1)] + [FULL]
    is_full = [window is None for window in windows_by_type(c, c.size("sliding_window", 512), types)]
    sources = last_sources(c, is_full)
    c = with_full_sizes(c, is_full, _OF_FULL)
    layers = tuple(
        f"{'full' if full else 'sliding'}{', shared' if source < layer else ''}"
        for layer, (full, source) in enumerate(zip(is_full, sources, strict=True))
    )
    per_layer = Carried("per_layer_inputs", (num_layers, ple)) if ple else None
    return Schema(
        top=(*embedding(c, tied=True, hidden=2304, vocab=262_144), *(_per_layer(c, num_layers, ple) if ple else ())),
        kinds={kind: _layer(c, is_full="full" in kind, is_shared="shared" in kind, ple=ple) for kind in set(layers)},
        layers=layers,
        carries=((), *((per_layer,),) * (num_layers - 1)) if per_layer else (),
        joined=joined(sources, "the KV cache"),
        unread=unread(sources, "[kv]_(proj|norm)"),
    )


def _per_layer(c: Config, num_layers: int, ple: int) -> tuple[Tensor, ...]:
    vocab = c.size("vocab_size_per_layer_input", 262_144)
    return (
        Tensor("per_layer.embed", (vocab, num_layers * ple), by_vocabulary(), table="device"),
        linear("per_layer.projection", num_layers * ple, c.size("hidden_size", 2304)),
        Tensor("per_layer.norm", (ple,)),
    )


def _layer(c: Config, *, is_full: bool, is_shared: bool, ple: int) -> tuple[Tensor, ...]:
    hidden, heads = c.size("hidden_size", 2304), c.size("num_attention_heads", 8)
    kv_heads, head = c.size("num_key_value_heads", 4), c.size("head_dim", 256)
    keys_as_values = is_full and c.flag("attention_k_eq_v")
    if is_full:
        head = c.size("global_head_dim", 512)
        kv_heads = c.size("num_global_key_value_heads", kv_heads) if keys_as_values else kv_heads
    norms = ["input_norm", "post_norm", "pre_mlp_norm", "post_mlp_norm"]
    unused = ("attn.k", "attn.v", "attn.k_norm") if is_shared else ("attn.v",) if keys_as_values else ()
    attention = blocks.attention(hidden, heads, kv_heads, head, q_norm=head, k_norm=head)
    wide = 2 if is_shared and c.flag("use_double_wide_mlp") else 1
    tensors = [t for t in attention if t.name not in unused]
    tensors += blocks.gated_mlp(hidden, c.size("intermediate_size", 9216) * wide)
    if c.flag("enable_moe_block"):
        experts = c.size("num_experts")
        norms += ["dense_norm", "pre_moe_norm", "post_moe_norm"]
        tensors += blocks.experts(hidden, c.size("moe_intermediate_size"), experts)
        tensors += [Tensor("moe.router_scale", (hidden,)), Tensor("moe.expert_scale", (experts,))]
    if ple:
        norms.append("per_layer.post_norm")
        tensors += [linear("per_layer.gate", ple, hidden), linear("per_layer.out", hidden, ple)]
    return (*(Tensor(norm, (hidden,)) for norm in norms), *tensors, Tensor("scalar", (1,)))


_LAYER = blocks.LAYER
SPELLING: Spelling = {
    **blocks.DECODER_SPELLING,
    "pre_mlp_norm": _LAYER + "pre_feedforward_layernorm.weight",
    "post_mlp_norm": _LAYER + "post_feedforward_layernorm.weight",
    "dense_norm": _LAYER + "post_feedforward_layernorm_1.weight",
    "pre_moe_norm": _LAYER + "pre_feedforward_layernorm_2.weight",
    "post_moe_norm": _LAYER + "post_feedforward_layernorm_2.weight",
    "moe.router": _LAYER + "router.proj.weight",
    "moe.router_scale": _LAYER + "router.scale",
    "moe.expert_scale": _LAYER + "router.per_expert_scale",
    **packed(_LAYER + "experts.gate_up_proj", "moe.gate", "moe.up", stacked=True),
    **packed(_LAYER + "experts.down_proj", "moe.down", stacked=True),
    "per_layer.embed": "model.embed_tokens_per_layer.weight",
    "per_layer.projection": "model.per_layer_model_projection.weight",
    "per_layer.norm": "model.per_layer_projection_norm.weight",
    "per_layer.gate": _LAYER + "per_layer_input_gate.weight",
    "per_layer.out": _LAYER + "per_layer_projection.weight",
    "per_layer.post_norm": _LAYER + "post_per_layer_input_norm.weight",
    "scalar": _LAYER + "layer_scalar",
}
_OF_MODEL = {"per_layer.embed", "per_layer.projection", "per_layer.norm"}
_OTHERWISE = {*blocks.TOP_SPELLING, "moe.gate", "moe.up", "moe.down", "mlp.gate", "mlp.up"}
_ALONE = [name for name in SPELLING if name not in _OTHERWISE]


def _param(name: str) -> Param:
    """Return the parameter of one logical tensor, under its stored name."""
    stored = SPELLING[name]
    assert isinstance(stored, str), f"{name} is packed"
    inner = stored.replace(_LAYER, "{block}.").removeprefix("model.")
    return Param(inner, (name,), stage="first" if name in _OF_MODEL else None)


FAMILY = Family(
    name="gemma4",
    architectures=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"),
    schema=schema,
    spelling=SPELLING,
    variants=(
        respelled(SPELLING, ("model.", "model.language_model.")),
        respelled(SPELLING, ("model.", "language_model.model.")),
    ),
    native=(
        *blocks.TOP_NATIVE,
        *map(_param, _ALONE),
        Param("{block}.mlp.gate_up_proj.weight", ("mlp.gate", "mlp.up")),
        Param("{block}.experts.w13_weight", ("moe.gate", "moe.up")),
        Param("{block}.experts.w2_weight", ("moe.down",)),
    ),
    waived=(
        blocks.INV_FREQ,
        blocks.VISION,
        (r"(model\.)?(audio_tower|embed_vision|embed_audio)\..*", LANGUAGE_ONLY),
    ),
    section="text_config",
)
