"""gpt-oss: all experts of a layer in one tensor, gate and up interleaved row by row, with biases; attention sinks.

As published the experts are MXFP4 (``…_blocks`` and ``…_scales``, out × in); plain copies are stored (in, out). Gate and
up stay interleaved, as kernels expect them: one logical tensor, cut in pairs of rows.

An expert's 2880 inner elements are 90 blocks of MXFP4, which 4 or 8 ranks cannot divide evenly: as in vLLM, each rank has
``ceil(90 / ranks)`` blocks, and those after the last one are zeros. A block of zeros with the exponent 0 is zero, and a
zero row of ``gate_up`` with a zero bias yields values that the zero columns of ``down`` ignore.

Sources: the released configs and headers; ``modeling_gpt_oss.py`` of transformers; ``_load_weights_mxfp4`` and
``_load_weights_other`` in vLLM's ``vllm/model_executor/models/gpt_oss.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import (
    FULL,
    SLIDING,
    AttentionSpec,
    Model,
    RouterSpec,
    SwigluSpec,
    require,
    windows_by_type,
)
from loadmaster.architectures.rope import Rope, read_rope
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.architectures.spelling import packed


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOssModel(Model):
    """Experts in every layer. ``windows`` gives for each layer how many tokens it attends to at most; None: all."""

    attention: AttentionSpec
    windows: tuple[int | None, ...]
    router: RouterSpec
    activation: SwigluSpec


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    inner, num_experts = c.size("intermediate_size"), c.size("num_local_experts")
    bias = c.flag("attention_bias", True)
    pairs = by_rows(2, pad=2, feeds="moe.down")
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=bias,
            out_bias=bias,
        ),
        Tensor("attn.sinks", (heads,), by_rows(), usual=("F32",)),
        Tensor("moe.router", (num_experts, hidden), usual=("F32",)),
        Tensor("moe.router_bias", (num_experts,), usual=("F32",)),
        linear("moe.gate_up", 2 * inner, hidden, pairs, experts=num_experts),
        Tensor("moe.gate_up_bias", (2 * inner,), pairs, experts=num_experts),
        linear("moe.down", hidden, inner, by_columns(pad=1), experts=num_experts),
        Tensor("moe.down_bias", (hidden,), experts=num_experts),
    )
    return Schema(
        top=embedding(c),
        kinds={"sparse": layer},
        layers=("sparse",) * c.size("num_hidden_layers"),
    )


def read_model(c: Config) -> GptOssModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")  # the published configs say so; the experts' activation is `SwigluSpec`
    _, heads, kv_heads, head = blocks.heads_of(c)
    num_layers, norm_eps = c.size("num_hidden_layers"), c.number("rms_norm_eps", 1e-5)
    types = [FULL if layer % 2 else SLIDING for layer in range(num_layers)]
    return GptOssModel(
        schema=schema(c),
        norm_eps=norm_eps,
        norm="rms_wide",
        attention=AttentionSpec(heads, kv_heads, head, norm_eps, _rope(c)),
        windows=windows_by_type(c, c.size("sliding_window", 128), types),
        router=RouterSpec(topk=c.size("num_experts_per_tok", 4), scoring="softmax", normalise=True),
        activation=SwigluSpec(
            alpha=c.number("swiglu_alpha", 1.702),
            limit=c.number("swiglu_limit", 7.0, above=0),
        ),
    )


def _rope(c: Config) -> Rope:
    """Return the rotary embeddings; where the config has no parameters of them, those of ``GptOssConfig``."""
    theta = c.number("rope_theta", 150000.0, above=0)
    if not c.section("rope_parameters").values and not c.section("rope_scaling").values:
        return Rope("yarn", theta, factor=32.0, original_length=4096, truncate=False)
    return read_rope(c, theta=theta)


_EXPERTS = blocks.LAYER + "mlp.experts."

FAMILY = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        "attn.sinks": blocks.LAYER + "self_attn.sinks",
        "moe.router": blocks.LAYER + "mlp.router.weight",
        "moe.router_bias": blocks.LAYER + "mlp.router.bias",
        **packed(_EXPERTS + "gate_up_proj", "moe.gate_up", stacked=True, transposed=True),
        **packed(_EXPERTS + "gate_up_proj_bias", "moe.gate_up_bias", stacked=True),
        **packed(_EXPERTS + "down_proj", "moe.down", stacked=True, transposed=True),
        **packed(_EXPERTS + "down_proj_bias", "moe.down_bias", stacked=True),
    },
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.self_attn.sinks", ("attn.sinks",)),
        Param("{block}.mlp.router.weight", ("moe.router",)),
        Param("{block}.mlp.router.bias", ("moe.router_bias",)),
        Param("{block}.mlp.experts.w13_weight", ("moe.gate_up",)),
        Param("{block}.mlp.experts.w13_bias", ("moe.gate_up_bias",)),
        Param("{block}.mlp.experts.w2_weight", ("moe.down",)),
        Param("{block}.mlp.experts.w2_bias", ("moe.down_bias",)),
    ),
    waived=(blocks.INV_FREQ,),
    runs=True,
)
