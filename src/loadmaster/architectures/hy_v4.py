"""Hy4: latent attention with a gate and sinks, four residual streams, routed experts, MTP layers under names of their own.

Indexers are as in GLM-5.2: ``shared`` layers reuse the selection of the last ``full`` one; a stage that begins there needs it.
The four streams, ``[4, hidden]`` for each token, cross every cut. What mixes them is stored as F32. MTP layers have no streams.
transformers saves the mixers under other names, and calls the gates of MLPs ``linear_gate`` too: that name is the attention's.

Sources: a review of the released headers (names and dtypes of the mixers, 471 of them; 27 tensors of the MTP layer);
``hy_v4/nvidia/model.py`` and ``mtp.py`` in ``vllm/models``; ``hy_v4`` of transformers 5.24.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks, deepseek, mla, residual_streams
from loadmaster.architectures.config import Config
from loadmaster.architectures.indexers import indexer_types, selections
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling, respelled

_DEFAULTS: Final = {
    **{"hidden_size": 2816, "intermediate_size": 6912, "moe_intermediate_size": 768, "vocab_size": 120832},
    **{"num_hidden_layers": 34, "num_attention_heads": 32, "n_routed_experts": 256, "first_k_dense_replace": 1},
    **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "v_head_dim": 256},
    **{"index_topk": 2048, "index_head_dim": 128, "index_n_heads": 16, "index_topk_freq": 4},
}
"""Of ``HYV4Config``. Layers 0, 1, 5, 9 … have an indexer."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    c = Config({**_DEFAULTS, **c.values})
    require(c, "enable_ihc", True)
    c.size("index_topk")  # null would be a model without indexers, which no layer is a kind of
    hidden, streams = c.size("hidden_size"), residual_streams.num_streams(c)
    indexer = mla.indexer(c)
    mlps = {"dense": deepseek.dense(c), "sparse": deepseek.experts(c)}
    kinds = {
        f"{mlp}/{kind}": (*_attention(c), *(indexer if kind == "full" else ()), *parts)
        for mlp, parts in mlps.items()
        for kind in ("full", "shared")
    }
    types = indexer_types(c)
    taken = selections(c, types)
    head = residual_streams.head_shapes(c)
    return Schema(
        top=(*embedding(c), *(Tensor(f"hc_head.{name}", shape, keep="F32") for name, shape in head.items())),
        kinds={kind: (*tensors, *_mixers(hidden, streams)) for kind, tensors in kinds.items()}
        | {"mtp": (*kinds["sparse/full"], *blocks.draft(c))},
        layers=tuple(f"{mlp}/{kind}" for mlp, kind in zip(deepseek.mlp_types(c), types, strict=True)),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
        carries=((), *((residual_streams.carried(c), *more) for more in taken[1:])),
    )


def _attention(c: Config) -> tuple[Tensor, ...]:
    hidden, heads, value = c.size("hidden_size"), c.size("num_attention_heads"), c.size("v_head_dim")
    tensors = [*deepseek.attention(c)]
    if c.flag("gated_mla", True):
        rows = 1 if c.values.get("gating_type") == "headwise" else value
        tensors.append(linear("attn.gate", heads * rows, hidden, by_rows(rows)))
    if c.flag("learnable_sink", True):
        tensors.append(Tensor("attn.sinks", (heads,), by_rows(), usual=("F32",)))
    return tuple(tensors)


def _mixers(hidden: int, streams: int) -> tuple[Tensor, ...]:
    """Return what makes the input of the attention and of the MLP from all streams, and puts the output back."""
    sizes = {"fn": (2 * streams, streams * hidden), "base": (2 * streams,), "scale": (2,)}
    return tuple(Tensor(f"hc_{of}.{n}", shape, keep="F32") for of in ("attn", "mlp") for n, shape in sizes.items())


_LAYER: Final = blocks.LAYER
_STACKED: Final[Spelling] = {
    **deepseek.SPELLING,
    **blocks.stacked_experts_spelling(),
    "attn.gate": _LAYER + "self_attn.linear_gate.weight",
    "attn.sinks": _LAYER + "self_attn.learnable_sink_param",
    **{
        f"hc_{of}.{n}": f"{_LAYER}hc_{of}_layer.hc_pre.hc_{n}" for of in ("attn", "mlp") for n in residual_streams.NAMES
    },
    **{f"hc_head.{n}": f"model.hc_head.hc_head_{n}" for n in residual_streams.NAMES},
}
_ONE_BY_ONE: Final[Spelling] = {**_STACKED, **blocks.experts_spelling()}
_SAVED: Final[Spelling] = {
    **_STACKED,
    "mlp.gate": _LAYER + "mlp.linear_gate.weight",
    "shared.gate": _LAYER + "mlp.shared_experts.linear_gate.weight",
    **{
        f"hc_{of}.{n}": f"{_LAYER}hc_pre.hc_{of}_layer.hc_{n}" for of in ("attn", "mlp") for n in residual_streams.NAMES
    },
    **{f"hc_head.{n}": f"model.hc_pre.hc_head.hc_head_{n}" for n in residual_streams.NAMES},
}
"""What transformers 5.24 saves."""


def _drafts(body: Spelling) -> Spelling:
    of_layer = {n: s for n, s in body.items() if n not in blocks.TOP_SPELLING and not n.startswith("hc_")}
    within = respelled(of_layer, ("model.layers.", "model.mtp_layers."))
    return {**within, "mtp.norm": "model.mtp_layers.{layer}.final_layernorm.weight"}


FAMILY = Family(
    name="hy_v4",
    architectures=("HYV4ForCausalLM",),
    schema=schema,
    spelling=_STACKED,
    variants=(_ONE_BY_ONE, _SAVED),
    drafts=(_drafts(_STACKED), _drafts(_ONE_BY_ONE)),
    native=(
        *deepseek.NATIVE,
        Param("{block}.self_attn.gate_proj.weight", ("attn.gate",)),
        Param("{block}.self_attn.sinks", ("attn.sinks",)),
        *(Param(f"{{block}}.hc_{of}.{n}", (f"hc_{of}.{n}",)) for of in ("attn", "mlp") for n in residual_streams.NAMES),
        *(Param(f"hc_head.{n}", (f"hc_head.{n}",), stage="last") for n in residual_streams.NAMES),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={
        "HYV4ForCausalLM": "of the release only the names of the mixers of streams and the number of MTP tensors were seen; the "
        "other names and shapes are those of transformers' class and of vLLM's loader"
    },
)
