"""Dory: vectors are normalised instead of activations, and a layer is attention or an MLP, each with its own scales.

The layers in the middle run several times in turn: a stage can begin before and after them, and not between. vLLM runs it on
one rank.

Sources: ``dory.py`` in ``vllm/model_executor/models``, whose names are those of releases; ``configuration_dory.py`` of
transformers 5.24, whose class joins an attention and an MLP to one layer.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_rows, by_vocabulary, embedding, linear
from loadmaster.errors import ConfigError


def schema(c: Config) -> Schema:
    """Return the logical tensors of a Dory, whose layers in the middle run in turn."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    num_layers, inner, wide = c.size("num_hidden_layers"), c.size("intermediate_size"), heads * head
    types = c.types("layer_types", ("full_attention", "sliding_attention", "mlp"), num_layers)
    first, turns = c.size("n_input_layers", least=0), c.size("n_recurrent_loops", 2)
    loop = range(first, first + c.size("n_recurrent_layers", least=0))
    if loop.stop + c.size("n_output_layers", least=0) != num_layers:
        raise ConfigError(
            f"config.json: n_input_layers, n_recurrent_layers and n_output_layers must add up to {num_layers} layers"
        )
    attention = (
        *blocks.attention(hidden, heads, kv_heads, head),
        linear("attn.gate", wide, hidden, by_rows(head)),
        *(Tensor(f"attn.{name}", (wide,), by_rows(head)) for name in ("q_scale", "gate_scale")),
        Tensor("attn.alpha", (hidden,)),
    )
    mlp = (
        *blocks.gated_mlp(hidden, inner),
        *(Tensor(f"mlp.{name}_scale", (inner,), by_rows()) for name in ("gate", "up")),
        Tensor("mlp.alpha", (hidden,)),
    )
    reason = f"layers {loop.start} to {loop.stop - 1} run {turns} times in turn"
    return Schema(
        top=(
            *(t for t in embedding(c) if t.name != "norm"),
            Tensor("head_scale", (c.size("vocab_size"),), by_vocabulary()),
        ),
        kinds={"attention": attention, "mlp": mlp},
        layers=tuple("mlp" if kind == "mlp" else "attention" for kind in types),
        joined=tuple(reason if layer in loop[1:] and turns > 1 else "" for layer in range(num_layers)),
        passes=tuple(turns if layer in loop else 1 for layer in range(num_layers)),
    )


_LAYER: Final = "backbone.layers.{layer}."
_MIXER: Final = _LAYER + "mixer."
_ALONE: Final = {
    "attn.gate": "self_attn.g_proj.weight",
    **{"attn.q_scale": "self_attn.sqk", "attn.gate_scale": "self_attn.s_gate", "attn.alpha": "attn_alpha"},
    **{"mlp.gate_scale": "mlp.suv_gate", "mlp.up_scale": "mlp.suv_up", "mlp.alpha": "mlp_alpha"},
}
_MODULES: Final = (("self_attn.", "mixer."), ("mlp.", "mixer."))


def _stored(name: str) -> str:
    """Return the name in a layer of what is called so here: both modules are called ``mixer``."""
    return next((_LAYER + new + name.removeprefix(old) for old, new in _MODULES if name.startswith(old)), _LAYER + name)


FAMILY = Family(
    name="dory",
    architectures=("DoryForCausalLM",),
    schema=schema,
    spelling={
        "embed": "backbone.embeddings.weight",
        "head": "lm_head.weight",
        "head_scale": "lm_head.logit_scale",
        **{f"attn.{part}": f"{_MIXER}{part}_proj.weight" for part in "qkvo"},
        **{f"mlp.{part}": f"{_MIXER}{part}_proj.weight" for part in ("gate", "up", "down")},
        **{name: _stored(stored) for name, stored in _ALONE.items()},
    },
    native=(
        *blocks.TOP_NATIVE,
        Param("lm_head.logit_scale", ("head_scale",), stage="last"),
        *blocks.ATTENTION_NATIVE,
        *blocks.gated_mlp_native(),
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _ALONE.items()),
    ),
    waived=(blocks.INV_FREQ,),
)
