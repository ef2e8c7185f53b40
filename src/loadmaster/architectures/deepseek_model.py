"""What computing a model of DeepSeek's family needs to know of its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import is_latent, schema
from loadmaster.architectures.indexers import draft_indexer, indexer_types
from loadmaster.architectures.model import IndexerSpec, LatentSpec, Model, RouterSpec, require
from loadmaster.architectures.rope import read_rope
from loadmaster.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekModel(Model):
    """Latent attention and experts.

    ``indexer_types`` gives the type of each layer, MTP layers included; ``indexer`` is None if no layer has one.
    ``drafts_share_selection``: an MTP layer that is run several times in a row selects tokens the first time only.
    """

    attention: LatentSpec
    indexer: IndexerSpec | None
    indexer_types: tuple[str, ...]
    drafts_share_selection: bool
    router: RouterSpec


def read_model(c: Config) -> DeepseekModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    require(c, "scoring_func", "sigmoid")
    require(c, "topk_method", "noaux_tc")
    if not is_latent(c) or c.values.get("q_lora_rank") is None:
        what = "q_lora_rank is null" if is_latent(c) else "there is no latent attention"
        raise UnsupportedError(f"config.json: {what}; such models can be planned and loaded, not run yet")
    norm_eps, rope_dim = c.number("rms_norm_eps"), c.size("qk_rope_head_dim")
    logical = schema(c)
    return DeepseekModel(
        schema=logical,
        norm_eps=norm_eps,
        attention=LatentSpec(
            num_heads=c.size("num_attention_heads"),
            nope_dim=c.size("qk_nope_head_dim"),
            rope_dim=rope_dim,
            value_dim=c.size("v_head_dim"),
            q_rank=c.size("q_lora_rank"),
            kv_rank=c.size("kv_lora_rank"),
            norm_eps=norm_eps,
            rope=read_rope(c),
            interleaved=c.flag("rope_interleave", True),
        ),
        indexer=_indexer_spec(c, rope_dim),
        indexer_types=(*indexer_types(c), *(draft_indexer(c),) * len(logical.drafts)),
        drafts_share_selection=c.flag("index_share_for_mtp_iteration"),
        router=RouterSpec(
            topk=c.size("num_experts_per_tok"),
            scoring="sigmoid",
            num_groups=c.size("n_group", 1, least=0) or 1,
            topk_groups=c.size("topk_group", 1, least=0) or 1,
            normalise=c.flag("norm_topk_prob", True),
            scaling=c.number("routed_scaling_factor", 1.0),
        ),
    )


def _indexer_spec(c: Config, rope_dim: int) -> IndexerSpec | None:
    if c.values.get("index_topk") is None:
        return None
    # GLM rotates neighbours; DeepSeek-V3.2 rotates one of each half, unlike in its main attention
    interleaved = c.flag("indexer_rope_interleave", c.values.get("model_type") == "glm_moe_dsa")
    return IndexerSpec(c.size("index_topk"), c.size("index_n_heads"), c.size("index_head_dim"), rope_dim, interleaved)
