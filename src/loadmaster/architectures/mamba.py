"""Mamba, the first one, by itself or with attention: Mamba, Falcon-Mamba and Jamba.

All is divided by channels: ``in_proj`` makes x and z of each, and ``x_proj`` sums over all of them to make the step and the
states B and C, which every rank has whole. Jamba has attention in one layer of several, experts in every second one, and norms
of step, B and C.

Sources: ``mamba``, ``falcon_mamba`` and ``jamba`` of transformers 5.24; ``mamba_mixer.py`` in
``vllm/model_executor/layers/mamba``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.architectures.spelling import Packed, packed


def pure(c: Config) -> Schema:
    """Return the logical tensors of a Mamba or a Falcon-Mamba."""
    require(c, "use_bias", False)
    hidden = c.size("hidden_size")
    inner = c.size("intermediate_size", c.size("expand", 2) * hidden)
    mixer = _mixer(
        hidden,
        inner,
        c.size("state_size", 16),
        _rank(c, "time_step_rank"),
        c.size("conv_kernel", 4),
        c.flag("use_conv_bias", True),
    )
    layer = (Tensor("input_norm", (hidden,)), *mixer)
    return Schema(embedding(c, tied=True), {"mamba": layer}, ("mamba",) * c.size("num_hidden_layers"))


def jamba(c: Config) -> Schema:
    """Return the logical tensors of a Jamba."""
    require(c, "mamba_proj_bias", False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    state, rank = c.size("mamba_d_state", 16), _rank(c, "mamba_dt_rank")
    inner, width = c.size("mamba_expand", 2) * hidden, c.size("mamba_d_conv", 4)
    norms = (Tensor(f"ssm.{name}_norm", (size,)) for name, size in (("dt", rank), ("b", state), ("c", state)))
    mixers = {
        "mamba": (*_mixer(hidden, inner, state, rank, width, c.flag("mamba_conv_bias", True)), *norms),
        "attention": blocks.attention(hidden, heads, kv_heads, head),
    }
    num_experts, wide = c.size("num_experts", 16), c.size("intermediate_size")
    mlps = {"dense": blocks.gated_mlp(hidden, wide), "sparse": blocks.experts(hidden, wide, num_experts)}
    attention = (c.size("attn_layer_period", 8), c.size("attn_layer_offset", 4, least=0))
    sparse = (c.size("expert_layer_period", 2), c.size("expert_layer_offset", 1, least=0))
    return Schema(
        top=embedding(c),
        kinds={f"{a}/{m}": (*blocks.norms(hidden), *mixers[a], *mlps[m]) for a in mixers for m in mlps},
        layers=tuple(
            f"{'attention' if i % attention[0] == attention[1] else 'mamba'}/"
            f"{'sparse' if num_experts > 1 and i % sparse[0] == sparse[1] else 'dense'}"
            for i in range(c.size("num_hidden_layers"))
        ),
    )


def _rank(c: Config, key: str) -> int:
    """Return the elements of which a step is made: ``auto`` is a sixteenth of the hidden size, rounded up."""
    return -(-c.size("hidden_size") // 16) if c.values.get(key, "auto") == "auto" else c.size(key)


def _mixer(hidden: int, inner: int, state: int, rank: int, width: int, conv_bias: bool) -> tuple[Tensor, ...]:
    by_channel = by_rows()
    return (
        *(linear(f"ssm.{name}", inner, hidden, by_channel) for name in ("x", "z")),
        Tensor("ssm.conv", (inner, 1, width), by_channel),
        *((Tensor("ssm.conv_bias", (inner,), by_channel),) if conv_bias else ()),
        linear("ssm.states", rank + 2 * state, inner, by_columns()),
        linear("ssm.dt", inner, rank, by_channel),
        Tensor("ssm.dt_bias", (inner,), by_channel, usual=("F32",)),
        Tensor("ssm.a_log", (inner, state), by_channel, usual=("F32",)),
        Tensor("ssm.d", (inner,), by_channel, usual=("F32",)),
        linear("ssm.out", hidden, inner, by_columns()),
    )


_ALONE: Final = {
    **{"ssm.conv": "conv1d.weight", "ssm.conv_bias": "conv1d.bias", "ssm.states": "x_proj.weight"},
    **{
        "ssm.dt": "dt_proj.weight",
        "ssm.dt_bias": "dt_proj.bias",
        "ssm.a_log": "A_log",
        "ssm.d": "D",
        "ssm.out": "out_proj.weight",
    },
}
_OF_JAMBA: Final = {f"ssm.{name}_norm": f"{name}_layernorm.weight" for name in ("dt", "b", "c")}


def _spelling(prefix: str) -> dict[str, str | Packed]:
    return {
        **packed(prefix + "in_proj.weight", "ssm.x", "ssm.z"),
        **{name: prefix + stored for name, stored in _ALONE.items()},
    }


def _native(prefix: str) -> tuple[Param, ...]:
    alone = (Param(prefix + stored, (name,)) for name, stored in _ALONE.items())
    return (Param(prefix + "in_proj.weight", ("ssm.x", "ssm.z")), *alone)


_LAYER: Final = "backbone.layers.{layer}."
PURE = Family(
    name="mamba",
    architectures=("MambaForCausalLM", "FalconMambaForCausalLM"),
    schema=pure,
    spelling={
        **{"embed": "backbone.embeddings.weight", "norm": "backbone.norm_f.weight", "head": "lm_head.weight"},
        "input_norm": _LAYER + "norm.weight",
        **_spelling(_LAYER + "mixer."),
    },
    native=(*blocks.TOP_NATIVE, Param("{block}.norm.weight", ("input_norm",)), *_native("{block}.mixer.")),
)
JAMBA = Family(
    name="jamba",
    architectures=("JambaForCausalLM",),
    schema=jamba,
    spelling={
        **blocks.DECODER_SPELLING,
        "norm": "model.final_layernorm.weight",
        "post_norm": blocks.LAYER + "pre_ff_layernorm.weight",
        **blocks.gated_mlp_spelling("feed_forward"),
        **blocks.experts_spelling("feed_forward"),
        "moe.router": blocks.LAYER + "feed_forward.router.weight",
        **_spelling(blocks.LAYER + "mamba."),
        **{name: f"{blocks.LAYER}mamba.{stored}" for name, stored in _OF_JAMBA.items()},
    },
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *_native("{block}.mamba."),
        *(Param(f"{{block}}.mamba.{stored}", (name,)) for name, stored in _OF_JAMBA.items()),
    ),
    waived=(blocks.INV_FREQ,),
)
