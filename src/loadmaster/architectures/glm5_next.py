"""GLM-5.3-Flash: three layers of Kimi Delta Attention, then one of latent attention with an indexer; four residual streams.

The indexer pools its keys, a few tokens into one. Streams, ``[4, hidden]`` for each token, cross every cut; after the last layer
they are averaged, without weights. The MTP layer is stored after the decoder layers: latent attention and experts on one
stream; it shares the model's embedding and head. Of the linear layers some are FP8 and others BF16: the headers decide.

Sources: header facts of GLM-5.3-Flash; ``modeling_glm5_next.py`` of transformers; ``vllm/models/glm5next/common``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks, kda, mla, residual_streams
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import dense, experts, mlp_types
from loadmaster.architectures.indexers import indexer_types
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import Spelling
from loadmaster.errors import ConfigError, UnsupportedError

_LINEAR = "linear_attention"
_LATENT = ("deepseek_sparse_attention", "full_attention", "indexed_attention")
"""Names of the other layers: in the release, and in transformers."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden = c.size("hidden_size")
    if "shared" in indexer_types(c):
        raise UnsupportedError(
            "config.json: indexer_types with shared is not supported for GLM-5.3-Flash: no release has it"
        )
    attentions = {True: _linear_attention(c), False: _latent_attention(c)}
    mlps = {"dense": dense(c), "sparse": experts(c)}
    kinds = {
        _kind(is_linear, mlp): (*blocks.norms(hidden), *attentions[is_linear], *_streams(c), *mlps[mlp])
        for is_linear in attentions
        for mlp in mlps
    }
    kinds["mtp"] = (*blocks.norms(hidden), *attentions[False], *mlps["sparse"], *blocks.draft(c))
    layers = tuple(_kind(*of_layer) for of_layer in zip(_linear_layers(c), mlp_types(c, dense=3), strict=True))
    return Schema(
        top=embedding(c),
        kinds=kinds,
        layers=layers,
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
        carries=((), *((residual_streams.carried(c),),) * (len(layers) - 1)),
    )


def _kind(is_linear: bool, mlp: str) -> str:
    return f"{mlp}/{'linear' if is_linear else 'latent'}"


def _linear_layers(c: Config) -> tuple[bool, ...]:
    """Return which layers have linear attention: by the list, or three of four."""
    num_layers, types = c.size("num_hidden_layers"), c.strings("layer_types")
    if not types:
        return tuple(layer % 4 != 3 for layer in range(num_layers))
    if len(types) != num_layers or not set(types) <= {_LINEAR, *_LATENT}:
        known = ", ".join((_LINEAR, *_LATENT[:-1]))
        raise ConfigError(
            f"config.json: layer_types must give one of {known} or {_LATENT[-1]} for each of {num_layers} layers"
        )
    return tuple(kind == _LINEAR for kind in types)


def _linear_attention(c: Config) -> tuple[Tensor, ...]:
    sizes = c.section("linear_attn_config")
    heads, head, width = (
        sizes.size(key, c.size(f"linear_{flat}", default))
        for key, flat, default in (
            ("num_heads", "num_heads", 64),
            ("head_dim", "head_dim", 128),
            ("short_conv_kernel_size", "conv_kernel_dim", 4),
        )
    )
    return kda.kda(c.size("hidden_size"), heads, head, width)


def _latent_attention(c: Config) -> tuple[Tensor, ...]:
    pool, head = c.size("index_kpool", 16), c.size("index_head_dim")
    return (
        *mla.latent_attention(c),
        *mla.indexer(c),
        Tensor("indexer.pool_positions", (pool, head)),
        Tensor("indexer.pool_gate", (head, c.size("hidden_size"))),
    )


def _streams(c: Config) -> tuple[Tensor, ...]:
    """Return what mixes the streams before and after attention, and before and after the MLP."""
    shapes = residual_streams.mix_shapes(c)
    return tuple(
        tensor
        for part in ("attn", "ffn")
        for tensor in (
            Tensor(f"hc_{part}_fn", shapes["fn"], usual=("F32",)),
            *(Tensor(f"hc_{part}_{name}", shapes[name], keep="F32") for name in ("base", "scale")),
        )
    )


_BESIDE = {
    "indexer.pool_positions": "self_attn.indexer.index_kpool_compress_ape",
    "indexer.pool_gate": "self_attn.indexer.index_kpool_compress_gate",
    **{f"hc_{part}_{name}": f"hc_{part}_{name}" for part in ("attn", "ffn") for name in residual_streams.NAMES},
}
SPELLING: Spelling = {
    **blocks.TOP_SPELLING,
    **blocks.NORMS_SPELLING,
    **kda.kda_spelling(),
    **mla.SPELLING,
    **mla.INDEXER_SPELLING,
    **{logical: blocks.LAYER + stored for logical, stored in _BESIDE.items()},
    **blocks.gated_mlp_spelling(),
    **blocks.experts_spelling(),
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    **blocks.DRAFT_SPELLING,
}

FAMILY = Family(
    name="glm5_next",
    architectures=("Glm5NextForCausalLM",),
    schema=schema,
    spelling=SPELLING,
    native=(
        *blocks.TOP_NATIVE,
        *blocks.NORMS_NATIVE,
        *kda.KDA_NATIVE,
        *mla.NATIVE,
        *mla.INDEXER_NATIVE,
        *(Param(f"{{block}}.{stored}", (logical,)) for logical, stored in _BESIDE.items()),
        *blocks.gated_mlp_native(),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
        *blocks.DRAFT_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
)
