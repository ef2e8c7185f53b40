"""Latent attention in DeepSeek's names, with other norms or MLPs: GLM-4.7-Flash, A.X K1, Sarvam-105B, openPangu Ultra, MiniCPM-3.

A.X K1 norms the output of experts, and its releases store that norm in dense layers too. openPangu norms the outputs of
attention and MLP (``sandwich_norm``), and stores the correction bias of the router beside it. MiniCPM-3 has no experts. MTP
layers are DeepSeek's.

Sources: ``glm4_moe_lite``, ``axk1`` and ``minicpm3`` of transformers 5.24; ``sarvam.py``, ``openpangu.py`` and
``openpangu_mtp.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks, deepseek, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, embedding

AXK1: Final = "AXK1ForCausalLM"
_PANGU: Final = ("PanguUltraMoEForCausalLM", "PanguProMoEV2ForCausalLM")


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    name, hidden = c.values["architectures"][0], c.size("hidden_size")
    norms: dict[str, tuple[Tensor, ...]] = {"dense": (), "sparse": ()}
    corrected = True
    if name == AXK1:
        norm = Tensor("post_mlp_norm", (hidden,))
        norms = {
            "dense": (replace(norm, optional="the norm after the MLP, which dense layers do not use"),),
            "sparse": (norm,),
        }
    elif name in _PANGU:
        require(c, "param_sink_number", 0)
        corrected = c.flag("router_enable_expert_bias")
        if c.flag("sandwich_norm"):
            norms = dict.fromkeys(norms, tuple(Tensor(f"{when}_mlp_norm", (hidden,)) for when in ("pre", "post")))
    mlps = {"dense": deepseek.dense(c), "sparse": _experts(c, corrected=corrected)}
    kinds = {mlp: (*deepseek.attention(c), *norms[mlp], *mlps[mlp]) for mlp in mlps}
    return Schema(
        top=embedding(c),
        kinds={**kinds, "mtp": (*kinds["sparse"], *blocks.draft(c))},
        layers=deepseek.mlp_types(c, dense=1),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
    )


def _experts(c: Config, *, corrected: bool) -> tuple[Tensor, ...]:
    hidden, inner = c.size("hidden_size"), c.size("moe_intermediate_size")
    count = c.size("n_routed_experts", c.optional_size("num_experts"))
    shared = c.size("num_shared_experts", c.size("n_shared_experts", 1, least=0), least=0)
    width = c.size("moe_shared_expert_intermediate_size", inner) * shared
    return (
        *blocks.experts(hidden, inner, count, router_bias=corrected),
        *(blocks.gated_mlp(hidden, width, logical="shared") if shared else ()),
    )


def minicpm3(c: Config) -> Schema:
    """Return the logical tensors of a MiniCPM-3."""
    layer = (*blocks.norms(c.size("hidden_size")), *mla.latent_attention(c), *deepseek.dense(c))
    return Schema(embedding(c, tied=True), {"dense": layer}, ("dense",) * c.size("num_hidden_layers"))


_NORMS: Final = {f"{when}_mlp_norm": f"{when}_mlp_layernorm.weight" for when in ("pre", "post")}
_SPELLING: Final = {**deepseek.SPELLING, **{name: blocks.LAYER + stored for name, stored in _NORMS.items()}}
_NATIVE: Final = (*deepseek.NATIVE, *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _NORMS.items()))

FAMILY = Family(
    name="other_mla",
    architectures=("Glm4MoeLiteForCausalLM", AXK1, "SarvamMLAForCausalLM"),
    schema=schema,
    spelling=_SPELLING,
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked={"SarvamMLAForCausalLM": OF_VLLM},
)
PANGU = Family(
    name="openpangu_moe",
    architectures=_PANGU,
    schema=schema,
    spelling={**_SPELLING, "moe.router_bias": blocks.LAYER + "mlp.e_score_correction_bias"},
    variants=(_SPELLING,),
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked=dict.fromkeys(_PANGU, OF_VLLM),
)
MINICPM3 = Family(
    name="minicpm3",
    architectures=("MiniCPM3ForCausalLM",),
    schema=minicpm3,
    spelling=_SPELLING,
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
)
