"""vLLM 0.32's models: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``vllm/model_executor/models`` (``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``qwen2_moe``, ``qwen3_moe``,
``mixtral``, ``deepseek_v2``, ``deepseek_mtp``) and ``vllm/models/deepseek_v32`` of 0.32.0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.targets.vllm import EMBEDDING, HEAD, NORM, Described, Version


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
    return "n_shared_experts is not given" if c.optional_size("n_shared_experts") is None else untied(c)


def _minimax(c: Config) -> str | None:
    """vLLM always has norms of queries and keys, and a correction bias if the config says so."""
    missing = [k for k in ("use_qk_norm", "use_routing_bias") if not c.flag(k)]
    return f"{missing[0]} is not true" if missing else untied(c)


def untied(c: Config) -> str | None:
    """vLLM always has an untied head."""
    return "the head is tied to the embedding" if c.flag("tie_word_embeddings") else None


_EVERYTHING = (EMBEDDING, NORM, HEAD)

SPARSE_BLOCK = (
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

_GRANITE = Described(
    ("GraniteMoeForCausalLM",), modules=SPARSE_BLOCK, on_every_stage=_EVERYTHING, sends=("hidden_states",)
)

VERSION: Final = Version(
    "vllm-0.32",
    {
        "LlamaForCausalLM": Described(("LlamaForCausalLM",), obstacle=_llama),
        "MistralForCausalLM": Described(("MistralForCausalLM",), obstacle=_llama),
        "Phi3ForCausalLM": Described(("Phi3ForCausalLM",), obstacle=_llama),
        "Qwen2ForCausalLM": Described(("Qwen2ForCausalLM",), obstacle=_qwen2),
        "Qwen3ForCausalLM": Described(("Qwen3ForCausalLM",)),
        "Qwen2MoeForCausalLM": Described(("Qwen2MoeForCausalLM",), on_every_stage=_EVERYTHING),
        "Qwen3MoeForCausalLM": Described(("Qwen3MoeForCausalLM",), on_every_stage=_EVERYTHING, obstacle=_qwen3_moe),
        "MixtralForCausalLM": Described(("MixtralForCausalLM",), modules=SPARSE_BLOCK, on_every_stage=_EVERYTHING),
        "MiniMaxM2ForCausalLM": Described(
            ("MiniMaxM2ForCausalLM",),
            modules=SPARSE_BLOCK,
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
    },
)
