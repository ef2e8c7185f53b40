"""Ling-3 (Bailing hybrid): Kimi Delta Attention, latent attention in the last layer of each group, routed experts.

Groups have ``layer_group_size`` layers. Layers after the last whole group have latent attention too, as in vLLM; in transformers
they have linear attention, unless ``layer_types`` says otherwise. The decay and the gate of linear attention are whole matrices.
Latent attention has a gate for each head, or for each element of its output (``gated_attention_proj_granularity_type``). MTP
layers are stored after the decoder layers: latent attention and experts; they share the model's embedding and head. FP8 copies
may have MXFP4 experts. The last matrix of latent attention is called ``dense``; transformers saves that of linear attention
under this name too.

Sources: ``bailing_hybrid`` of transformers 5.24; ``bailing_moe_v3.py`` and ``bailing_moe_v3_mtp.py`` in
``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks, kda, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling
from loadmaster.errors import ConfigError

LINEAR, LATENT = "linear_attention", "full_attention"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden = c.size("hidden_size")
    require(c, "use_bias", False)
    require(c, "no_kda_lora", True)
    heads = c.size("linear_num_heads", c.size("num_attention_heads"))
    head, width = c.size("linear_head_dim", c.optional_size("head_dim")), c.size("short_conv_kernel_size", 4)
    attentions = {LINEAR: kda.kda(hidden, heads, head, width, whole=("f", "g")), LATENT: _latent_attention(c)}
    mlps = {"dense": blocks.gated_mlp(hidden, c.size("intermediate_size")), "sparse": _experts(c)}
    kinds = {f"{m}/{a}": (*blocks.norms(hidden), *attentions[a], *mlps[m]) for m in mlps for a in attentions}
    draft = (
        linear("mtp.eh_proj", hidden, 2 * hidden),
        *(Tensor(f"mtp.{norm}", (hidden,)) for norm in ("enorm", "hnorm", "norm")),
    )
    return Schema(
        top=embedding(c),
        kinds={**kinds, "mtp": (*kinds[f"sparse/{LATENT}"], *draft)},
        layers=tuple(f"{m}/{a}" for m, a in zip(mlp_types(c, dense=2), _layer_types(c), strict=True)),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", c.size("num_mtp_layers", 0, least=0), least=0),
    )


def _layer_types(c: Config) -> tuple[str, ...]:
    """Return the attention of each layer: from the list if there is one, else latent in the last layer of each group."""
    num_layers, group = c.size("num_hidden_layers"), c.size("layer_group_size", 6)
    whole = num_layers // group * group
    default = [LATENT if (layer + 1) % group == 0 or layer >= whole else LINEAR for layer in range(num_layers)]
    return c.types("layer_types", (LINEAR, LATENT), num_layers, default)


def _latent_attention(c: Config) -> tuple[Tensor, ...]:
    """Return the tensors of latent attention; transformers' class always has a gate for each head."""
    heads, value, key = c.size("num_attention_heads"), c.size("v_head_dim"), "gated_attention_proj_granularity_type"
    gate = c.values.get(key, "head_wise" if c.values["architectures"][0] == "BailingHybridForCausalLM" else None)
    sizes = {None: 0, "head_wise": 1, "element_wise": value}
    if not isinstance(gate, str | None) or gate not in sizes:
        raise ConfigError(f"config.json: {key} is {gate!r}, expected head_wise or element_wise")
    tensors = mla.latent_attention(c)
    if sizes[gate]:
        tensors += (linear("attn.gate", heads * sizes[gate], c.size("hidden_size"), by_rows(sizes[gate])),)
    return tensors


def _experts(c: Config) -> tuple[Tensor, ...]:
    hidden, inner = c.size("hidden_size"), c.size("moe_intermediate_size")
    count = c.size("num_experts", c.optional_size("num_local_experts"))
    shared = c.size("moe_shared_expert_intermediate_size", inner) * c.size(
        "num_shared_experts", c.size("n_shared_experts", 1)
    )
    return (
        *blocks.experts(hidden, inner, count, router_bias=True),
        *blocks.gated_mlp(hidden, shared, logical="shared"),
    )


def _spelling(last_of_linear: str) -> Spelling:
    latent = {name: stored.replace(".self_attn.", ".attention.") for name, stored in mla.SPELLING.items()}
    return {
        **blocks.TOP_SPELLING,
        "embed": "model.word_embeddings.weight",
        **blocks.NORMS_SPELLING,
        **kda.kda_spelling("attention", last_of_linear),
        **latent,
        "attn.gate": blocks.LAYER + "attention.g_proj.weight",
        "attn.o": blocks.LAYER + "attention.dense.weight",
        **blocks.gated_mlp_spelling(),
        **blocks.experts_spelling(),
        "moe.router_bias": blocks.LAYER + "mlp.gate.expert_bias",
        **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
        **{name: stored for name, stored in blocks.DRAFT_SPELLING.items() if name in _DRAFT},
        "mtp.norm": blocks.LAYER + "final_layernorm.weight",
    }


_DRAFT: Final = ("mtp.eh_proj", "mtp.enorm", "mtp.hnorm")

FAMILY = Family(
    name="bailing_hybrid",
    architectures=("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"),
    schema=schema,
    spelling=_spelling("o_proj"),
    variants=(_spelling("dense"),),
    native=(
        *blocks.TOP_NATIVE,
        *blocks.NORMS_NATIVE,
        *kda.KDA_NATIVE,
        *mla.NATIVE,
        Param("{block}.self_attn.g_proj.weight", ("attn.gate",)),
        *blocks.gated_mlp_native(),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
        *blocks.DRAFT_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
    unchecked=dict.fromkeys(
        ("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"),
        "names and shapes are those of transformers' class and, of MTP layers, of vLLM's loader; number formats were not "
        "seen in a release",
    ),
)
