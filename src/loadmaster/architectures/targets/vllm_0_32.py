"""vLLM 0.32's parameters, derived from a family's native ones, which are called as vLLM calls them within a block.

What vLLM makes different: blocks and the model's own parameters lie under ``model.``, experts in a module of their own, a
vocabulary is padded to a multiple of 64 always, and a plain parameter is in the model's dtype whatever is stored. Some of
its models hold embedding, norm and head on every stage. MTP layers are a model of their own there, whose names go on where
the model's end (`DRAFT_EMBEDDING` does not); here they are planned with the model, on its last stage.

Sources: ``vllm/model_executor/models`` (``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``qwen2_moe``, ``qwen3_moe``,
``mixtral``, ``deepseek_v2``, ``deepseek_mtp``) and ``vllm/models/deepseek_v32`` of 0.32.0. ``tests/integrations`` holds
all of it against what vLLM's own loader writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import FAMILIES
from loadmaster.architectures.schema import Family, Param, Target
from loadmaster.errors import UnsupportedError

NAME: Final = "vllm-0.32"

NOT_OF_PLUGINS: Final = (
    ": its family is from another package, and only loadmaster's own are, because what vLLM makes of a model is not in a "
    "family's tables and is held against vLLM's own loaders; prove it for the native target, "
    "and let it be streamed through vLLM's own loader"
)
"""Why a family from another package has no parameters here."""

DRAFT_EMBEDDING: Final = ("{draft}.embed_tokens.weight", "model.embed_tokens.weight")
"""What is planned as a draft's embedding, and what it is called within the draft."""


@dataclass(frozen=True)
class Described:
    """What is peculiar to an architecture.

    ``classes`` are vLLM's for it, and ``drafts`` those for its MTP layers. ``modules`` are what vLLM calls modules of a
    block otherwise, native name first; the first that fits is renamed. ``on_every_stage``: embedding, norm and head are held
    by all stages. ``keep`` are parameters of a block that have a format of their own. ``obstacle`` says why a config is not
    described; None if it is.
    """

    classes: tuple[str, ...]
    drafts: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = (("mlp.experts.", "mlp.experts.routed_experts."),)
    on_every_stage: bool = False
    keep: tuple[tuple[str, str], ...] = ()
    obstacle: Callable[[Config], str | None] = lambda c: None


def _llama(c: Config) -> str | None:
    """vLLM's Llama reads where biases are from keys that other architectures brought along."""
    strange = [k for k in ("bias", "qkv_bias", "ada_rms_norm_t_cond") if k in c.values]
    return f"config.json has {strange[0]}" if strange else None


def _qwen2(c: Config) -> str | None:
    return "config.json has qk_norm" if c.flag("qk_norm") else None


def _qwen3_moe(c: Config) -> str | None:
    return "it has shared experts" if c.size("shared_expert_intermediate_size", 0, least=0) else None


def _deepseek(c: Config) -> str | None:
    """vLLM has a correction bias for one method only."""
    if c.values.get("topk_method") != "noaux_tc":
        return f"topk_method is {c.values.get('topk_method')!r}, not 'noaux_tc'"
    return _glm4_moe(c)


def _glm4_moe(c: Config) -> str | None:
    """vLLM has shared experts where they are counted, and a head of its own always."""
    return "n_shared_experts is not given" if c.optional_size("n_shared_experts") is None else _untied(c)


def _minimax(c: Config) -> str | None:
    """vLLM has norms of queries and keys always, and a correction bias where the config says so."""
    missing = [k for k in ("use_qk_norm", "use_routing_bias") if not c.flag(k)]
    return f"{missing[0]} is not true" if missing else _untied(c)


def _untied(c: Config) -> str | None:
    return "the head is tied to the embedding" if c.flag("tie_word_embeddings") else None


_SPARSE_BLOCK = (
    ("mlp.experts.", "block_sparse_moe.experts.routed_experts."),
    ("mlp.gate.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias"),
    ("mlp.gate.", "block_sparse_moe.gate."),
    ("mlp.shared_mlp.gate_up_proj.", "shared_mlp.input_linear."),
    ("mlp.shared_mlp.down_proj.", "shared_mlp.output_linear."),
)

_DEEPSEEK = Described(
    ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"),
    drafts=("DeepSeekMTP", "DeepseekV32MTP"),
    keep=(("self_attn.indexer.k_norm.weight", "F32"), ("self_attn.indexer.k_norm.bias", "F32")),
    obstacle=_deepseek,
)

DESCRIBED: Final = {
    "LlamaForCausalLM": Described(("LlamaForCausalLM",), obstacle=_llama),
    "MistralForCausalLM": Described(("MistralForCausalLM",), obstacle=_llama),
    "Phi3ForCausalLM": Described(("Phi3ForCausalLM",), obstacle=_llama),
    "Qwen2ForCausalLM": Described(("Qwen2ForCausalLM",), obstacle=_qwen2),
    "Qwen3ForCausalLM": Described(("Qwen3ForCausalLM",)),
    "Qwen2MoeForCausalLM": Described(("Qwen2MoeForCausalLM",), on_every_stage=True),
    "Qwen3MoeForCausalLM": Described(("Qwen3MoeForCausalLM",), on_every_stage=True, obstacle=_qwen3_moe),
    "MixtralForCausalLM": Described(("MixtralForCausalLM",), modules=_SPARSE_BLOCK, on_every_stage=True),
    "MiniMaxM2ForCausalLM": Described(
        ("MiniMaxM2ForCausalLM",),
        modules=_SPARSE_BLOCK,
        keep=(("block_sparse_moe.gate.weight", "F32"),),
        obstacle=_minimax,
    ),
    "GraniteMoeForCausalLM": Described(("GraniteMoeForCausalLM",), modules=_SPARSE_BLOCK, on_every_stage=True),
    "GraniteMoeSharedForCausalLM": Described(
        ("GraniteMoeSharedForCausalLM",), modules=_SPARSE_BLOCK, on_every_stage=True
    ),
    "Glm4MoeForCausalLM": Described(
        ("Glm4MoeForCausalLM",),
        drafts=("Glm4MoeMTP",),
        keep=(("mlp.gate.weight", "F32"),),
        obstacle=_glm4_moe,
    ),
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK,
    "GlmMoeDsaForCausalLM": replace(_DEEPSEEK, classes=("GlmMoeDsaForCausalLM", "DeepseekV32ForCausalLM")),
}
"""Architecture of a config.json → what vLLM makes of it."""


def target(family: Family, config: Config) -> Target:
    """Return the parameters of vLLM 0.32's model.

    Raises:
        UnsupportedError: the architecture, or this config of it, is not described.
    """
    architecture = config.values["architectures"][0]
    known = DESCRIBED.get(architecture)
    if known is None:
        raise UnsupportedError(
            f"{architecture} is not described for {NAME}" + ("" if family in FAMILIES else NOT_OF_PLUGINS),
            hint=f"described: {', '.join(DESCRIBED)}",
        )
    if obstacle := known.obstacle(config):
        raise UnsupportedError(f"{architecture} is not described for {NAME}: {obstacle}")
    return Target(
        NAME,
        tuple(_renamed(p, known) for p in family.native if known.drafts or not _is_of_draft(p)),
        layer="model.layers.{layer}",
        draft="model.layers.{layer}.mtp_block" if known.drafts else None,
        formats={"fp8_block": ("weight_scale_inv",)},
        fixed=True,
        dtypes={"F32": "BF16"},  # unless it is asked for F32
    )


def _renamed(param: Param, known: Described) -> Param:
    if param.stage is not None:
        stage = "every" if known.on_every_stage else param.stage
        otherwise = param.otherwise and _of_model(param.otherwise)
        return replace(param, name=_of_model(param.name), otherwise=otherwise, stage=stage)
    if _is_of_draft(param):
        otherwise = param.otherwise and _of_model(param.otherwise)
        return replace(param, name=param.name.replace("{block}", "{draft}"), otherwise=otherwise)
    inside = param.name.removeprefix("{block}.")
    old, new = next((pair for pair in known.modules if inside.startswith(pair[0])), ("", ""))
    called = new + inside.removeprefix(old)
    return replace(param, name=f"{{block}}.{called}", keep=dict(known.keep).get(called))


def _is_of_draft(param: Param) -> bool:
    return param.parts[0].startswith("mtp.")


def _of_model(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
