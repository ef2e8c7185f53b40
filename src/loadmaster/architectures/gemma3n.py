"""Gemma-3n: four streams (AltUp), a low-rank branch beside attention (LAuReL), and embeddings for each layer.

All streams cross every cut, and with them what all layers need of the per-layer embeddings, which the first stage computes. The
last ``num_kv_shared_layers`` layers read the KV cache of the last layer of their type before them; no cut may lie between. The
last stage makes one hidden state of the streams. The width of the MLP may differ from layer to layer.

Sources: ``gemma3n`` of transformers 5.24 and of ``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import FULL, SLIDING, require, windows_by_type
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
from loadmaster.architectures.spelling import respelled
from loadmaster.errors import ConfigError

STREAMS: Final = 8
"""The most streams that are spelled; published models have four."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "attention_bias", False)
    num_layers, hidden, streams = c.size("num_hidden_layers"), c.size("hidden_size"), c.size("altup_num_inputs", 4)
    if streams > STREAMS:
        raise ConfigError(f"config.json: altup_num_inputs is {streams}, expected at most {STREAMS}")
    types = [FULL if (layer + 1) % 5 == 0 else SLIDING for layer in range(num_layers)]
    is_full = [window is None for window in windows_by_type(c, c.size("sliding_window", 512), types)]
    sources = last_sources(c, is_full)
    widths, ple = _widths(c, num_layers), c.size("hidden_size_per_layer_input", 256)
    kinds = {
        f"MLP of {width}{', shared' if is_shared else ''}": _layer(c, width, ple, streams, is_shared=is_shared)
        for width in dict.fromkeys(widths)
        for is_shared in (False, True)
    }
    carried = (Carried("hidden_states", (streams, hidden)), Carried("per_layer_inputs", (num_layers, ple)))
    shared = [layer for layer, source in enumerate(sources) if source < layer]
    return Schema(
        top=(*embedding(c, tied=True), *_top(c, num_layers, ple, streams)),
        kinds=kinds,
        layers=tuple(f"MLP of {w}{', shared' if i in shared else ''}" for i, w in enumerate(widths)),
        carries=((), *(carried,) * (num_layers - 1)),
        joined=joined(sources, "the KV cache"),
        unread=unread(sources, "([kv]_proj|k_norm)"),
    )


def _widths(c: Config, num_layers: int) -> tuple[int, ...]:
    """Return the width of each layer's MLP: one for all, or a list."""
    if isinstance(c.values.get("intermediate_size"), list):
        widths = c.sizes("intermediate_size")
        if len(widths) != num_layers or not all(widths):
            raise ConfigError(
                f"config.json: intermediate_size must be a number, or one for each of {num_layers} layers"
            )
        return widths
    return (c.size("intermediate_size"),) * num_layers


def _top(c: Config, num_layers: int, ple: int, streams: int) -> tuple[Tensor, ...]:
    hidden, rows = c.size("hidden_size"), c.size("vocab_size_per_layer_input", 262_144)
    return (
        Tensor("per_layer.embed", (rows, num_layers * ple), by_vocabulary(), table="device"),
        linear("per_layer.projection", num_layers * ple, hidden),
        Tensor("per_layer.norm", (ple,)),
        *(linear(f"altup.{kind}.{i}", hidden, hidden) for kind in _OF_STREAMS for i in range(streams - 1)),
    )


def _layer(c: Config, width: int, ple: int, streams: int, *, is_shared: bool) -> tuple[Tensor, ...]:
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    rank = c.size("laurel_rank", 64)
    unused = ("attn.k", "attn.v", "attn.k_norm") if is_shared else ()
    attention = blocks.attention(hidden, heads, kv_heads, head, q_norm=head, k_norm=head)
    return (
        *blocks.norms(hidden),
        *(Tensor(name, (hidden,)) for name in ("pre_mlp_norm", "post_mlp_norm", "laurel.norm", "per_layer.post_norm")),
        *(t for t in attention if t.name not in unused),
        *blocks.gated_mlp(hidden, width),
        linear("laurel.left", rank, hidden),
        linear("laurel.right", hidden, rank),
        linear("per_layer.gate", ple, hidden),
        linear("per_layer.out", hidden, ple),
        *(Tensor(f"altup.{name}", (hidden,)) for name in ("scale", "norm")),
        Tensor("altup.correction", (streams, streams)),
        Tensor("altup.prediction", (streams * streams, streams)),
        Tensor("altup.router", (streams, hidden)),
    )


_OF_STREAMS: Final = {"in": "altup_projections", "out": "altup_unembed_projections"}
_TOP: Final = {
    "per_layer.embed": "embed_tokens_per_layer.weight",
    "per_layer.projection": "per_layer_model_projection.weight",
    "per_layer.norm": "per_layer_projection_norm.weight",
    **{f"altup.{kind}.{i}": f"{stored}.{i}.weight" for kind, stored in _OF_STREAMS.items() for i in range(STREAMS - 1)},
}
_OWN: Final = {
    **{f"{when}_mlp_norm": f"{when}_feedforward_layernorm.weight" for when in ("pre", "post")},
    **{f"laurel.{way}": f"laurel.linear_{way}.weight" for way in ("left", "right")},
    "laurel.norm": "laurel.post_laurel_norm.weight",
    "per_layer.gate": "per_layer_input_gate.weight",
    "per_layer.out": "per_layer_projection.weight",
    "per_layer.post_norm": "post_per_layer_input_norm.weight",
    "altup.scale": "altup.correct_output_scale",
    "altup.norm": "altup.router_norm.weight",
    "altup.router": "altup.modality_router.weight",
    **{f"altup.{name}": f"altup.{name}_coefs.weight" for name in ("correction", "prediction")},
    **{name: f"self_attn.{name[5]}_proj.weight" for name in ("attn.q", "attn.k", "attn.v")},
}
_SPELLING: Final = {
    **blocks.DECODER_SPELLING,
    **{name: "model." + stored for name, stored in _TOP.items()},
    **{name: blocks.LAYER + stored for name, stored in _OWN.items()},
}

FAMILY = Family(
    name="gemma3n",
    architectures=("Gemma3nForConditionalGeneration", "Gemma3nForCausalLM"),
    schema=schema,
    spelling=_SPELLING,
    variants=(respelled(_SPELLING, ("model.", "model.language_model.")),),
    native=(
        *(p for p in blocks.DECODER_NATIVE if p.parts != ("attn.q", "attn.k", "attn.v")),
        *(Param(stored, (n,), stage="last" if n.startswith("altup.out") else "first") for n, stored in _TOP.items()),
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _OWN.items()),
    ),
    waived=(blocks.INV_FREQ, blocks.VISION, (r"(model\.)?(audio_tower|embed_vision|embed_audio)\..*", LANGUAGE_ONLY)),
    section="text_config",
)
