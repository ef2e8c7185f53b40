"""vLLM 0.32's parameters, derived from a family's native ones, which have vLLM's names within a block.

The differences in vLLM: blocks and the model's own parameters are under ``model.``, experts have their own module, a
vocabulary is always padded to a multiple of 64, and a plain parameter has the model's dtype whatever is stored. Some models
hold embedding, norm and head on every stage. MTP layers are a separate draft model, whose layer numbers continue those of the
model (`DRAFT_EMBEDDING` has none); here they are planned with the model, on its last stage.

Sources: ``vllm/model_executor/models`` (``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``qwen2_moe``, ``qwen3_moe``,
``mixtral``, ``deepseek_v2``, ``deepseek_mtp``) and ``vllm/models/deepseek_v32`` of 0.32.0. ``tests/integrations/vllm``
compares all of it with what vLLM's own loader writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import FAMILIES
from loadmaster.architectures.schema import Family, Param, Target
from loadmaster.architectures.wrapper import WrappedFamily
from loadmaster.errors import UnsupportedError

NAME: Final = "vllm-0.32"

NOT_OF_PLUGINS: Final = (
    ": its family is from another package, and only loadmaster's own families are described, because they are compared with "
    "vLLM's own loaders; prove it for the native target, and stream it through vLLM's own loader"
)
"""Why a family from another package has no vLLM target."""

DRAFT_EMBEDDING: Final = ("{draft}.embed_tokens.weight", "model.embed_tokens.weight")
"""The name of a draft model's embedding in the plan, and its name in the draft model."""


@dataclass(frozen=True)
class Described:
    """How vLLM implements an architecture.

    ``classes`` are vLLM's classes for it, and ``drafts`` those for its MTP layers. ``modules`` are modules of a block with
    another name in vLLM, as (native name, vLLM's name); the first that matches is renamed. ``on_every_stage``: all stages
    hold embedding, norm and head. ``keep`` are parameters of a block with a fixed dtype. ``sends`` is what a stage passes to
    the next (``make_empty_intermediate_tensors``). ``obstacle`` returns why a config is not described; None if it is.
    """

    classes: tuple[str, ...]
    drafts: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = (("mlp.experts.", "mlp.experts.routed_experts."),)
    on_every_stage: bool = False
    keep: tuple[tuple[str, str], ...] = ()
    sends: tuple[str, ...] = ("hidden_states", "residual")
    obstacle: Callable[[Config], str | None] = lambda c: None


def _llama(c: Config) -> str | None:
    """vLLM's Llama reads which layers have biases from keys of other architectures."""
    foreign = [k for k in ("bias", "qkv_bias", "ada_rms_norm_t_cond") if k in c.values]
    return f"config.json has {foreign[0]}" if foreign else None


def _qwen2(c: Config) -> str | None:
    return "config.json has qk_norm" if c.flag("qk_norm") else None


def _qwen3_moe(c: Config) -> str | None:
    return "it has shared experts" if c.size("shared_expert_intermediate_size", 0, least=0) else None


def _deepseek(c: Config) -> str | None:
    """vLLM supports a correction bias for one method only, and fuses compressed queries only."""
    if c.values.get("q_lora_rank") is None:
        return "q_lora_rank is null"
    if c.values.get("topk_method") != "noaux_tc":
        return f"topk_method is {c.values.get('topk_method')!r}, not 'noaux_tc'"
    return _glm4_moe(c)


def _glm4_moe(c: Config) -> str | None:
    """vLLM needs the number of shared experts, and always has an untied head."""
    return "n_shared_experts is not given" if c.optional_size("n_shared_experts") is None else _untied(c)


def _minimax(c: Config) -> str | None:
    """vLLM always has norms of queries and keys, and a correction bias if the config says so."""
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

_GRANITE = Described(("GraniteMoeForCausalLM",), modules=_SPARSE_BLOCK, on_every_stage=True, sends=("hidden_states",))

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
    "GraniteMoeForCausalLM": _GRANITE,
    "GraniteMoeSharedForCausalLM": replace(_GRANITE, classes=("GraniteMoeSharedForCausalLM",)),
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
"""Architecture in config.json → how vLLM implements it."""


def target(family: Family, config: Config) -> Target:
    """Return the parameters of vLLM 0.32's model.

    Raises:
        UnsupportedError: the architecture, or this config of it, is not described.
    """
    architecture = config.values["architectures"][0]
    if isinstance(family, WrappedFamily):
        raise UnsupportedError(
            f"{family.architectures[0]} is not described for {NAME}, which names the parameters of the {architecture} inside "
            "it differently",
            hint="prove it for the native target, and stream it through vLLM's own loader",
        )
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
        dtypes={"F32": "BF16"},  # unless F32 is requested
        sends=known.sends,
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
    name = new + inside.removeprefix(old)
    return replace(param, name=f"{{block}}.{name}", keep=dict(known.keep).get(name))


def _is_of_draft(param: Param) -> bool:
    return param.parts[0].startswith("mtp.")


def _of_model(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
