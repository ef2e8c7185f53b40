"""Every family's loader, from the names in its checkpoints to those of the running model: the dense ones, and the list."""

from __future__ import annotations

from collections.abc import Callable

from tests.loader.reference import blocks, deepseek_v4, hybrids, inkling, kda, latent, mamba, mixtures, qwen
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Loader
from tests.loader.reference.place import Part

Family = Callable[[Loader, int], None]
"""Fills a loader's parameters; the number is that of the MTP layers that are asked for."""


def llama(r: Loader, drafts: int) -> None:
    """Llama, Mistral, Qwen2, Qwen3."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        blocks.gated_mlp(r, p + "mlp.", q + "mlp.")


def gemma3(r: Loader, drafts: int) -> None:
    """Gemma-3: four norms, a tied head, three prefixes."""
    prefixes = ("model.", "language_model.model.", "model.language_model.")
    prefix = next(x for x in prefixes if x + "norm.weight" in r.stored)
    r.top(prefix)
    for p, q in layers(r, prefix):
        r.copy(q, p, (*blocks.NORMS, "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"))
        blocks.attention(r, p, q)
        blocks.gated_mlp(r, p + "mlp.", q + "mlp.")


def phi3(r: Loader, drafts: int) -> None:
    """Phi-3 and Phi-4: q, k, v and gate, up packed on disk."""
    heads, kv_heads = r.config["num_attention_heads"], r.config["num_key_value_heads"]
    head = r.config.get("head_dim") or r.config["hidden_size"] // heads
    edges = (0, heads * head, (heads + kv_heads) * head, (heads + 2 * kv_heads) * head)

    def kv(size: int) -> Part:
        return r.place.heads(size, head)

    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        packed = p + "self_attn.qkv_proj."
        shares = (r.place.share, kv, kv)
        parts = [r.rows(packed, edges[i : i + 2], share) for i, share in enumerate(shares)]
        r.put(q + "self_attn.qkv_proj.", *parts)
        r.put(q + "self_attn.o_proj.", r.columns(p + "self_attn.o_proj."))
        blocks.packed_mlp(r, p + "mlp.gate_up_proj.", p + "mlp.down_proj.", q + "mlp.")


def olmo(r: Loader, drafts: int) -> None:
    """OLMo-2 and OLMo-3: norms after attention and MLP, and over all heads."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"))
        blocks.attention(r, p, q, norms_over_all_heads=True)
        blocks.gated_mlp(r, p + "mlp.", q + "mlp.")


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), llama),
    **dict.fromkeys(("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"), mixtures.deepseek),
    "Glm4MoeForCausalLM": mixtures.glm4_moe,
    **dict.fromkeys(("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"), qwen.qwen_moe),
    "Qwen3NextForCausalLM": qwen.qwen3_next,
    **dict.fromkeys(("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"), qwen.qwen3_5),
    **dict.fromkeys(("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"), qwen.qwen3_5),
    "Qwen4ExpForConditionalGeneration": qwen.qwen4_exp,
    **dict.fromkeys(("MixtralForCausalLM", "MiniMaxM2ForCausalLM"), mixtures.mixtral),
    "GptOssForCausalLM": mixtures.gpt_oss,
    **dict.fromkeys(("Llama4ForConditionalGeneration", "Llama4ForCausalLM"), mixtures.llama4),
    **dict.fromkeys(("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"), gemma3),
    "Phi3ForCausalLM": phi3,
    **dict.fromkeys(("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"), mixtures.granite_moe),
    "MiMoV2ForCausalLM": hybrids.mimo_v2,
    **dict.fromkeys(("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"), hybrids.gemma4),
    "MiniMaxM3SparseForConditionalGeneration": mixtures.minimax_m3,
    "MuseSparkForConditionalGeneration": mixtures.muse_spark,
    **dict.fromkeys(("Mistral4ForCausalLM", "MistralLarge3ForCausalLM"), latent.mistral),
    "MistralLarge4ForConditionalGeneration": latent.mistral,
    "HYV4ForCausalLM": latent.hy_v4,
    "LongcatFlashForCausalLM": latent.longcat_flash,
    **dict.fromkeys(("KimiLinearForCausalLM", "KimiK3ForConditionalGeneration"), kda.kimi),
    "Glm5NextForConditionalGeneration": kda.glm5_next,
    **dict.fromkeys(("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"), kda.ling),
    **dict.fromkeys(("DeepseekV4ForCausalLM", "DeepseekV41ForCausalLM"), deepseek_v4.deepseek_v4),
    "InklingForConditionalGeneration": inkling.inkling,
    **dict.fromkeys(("Inkling2ForConditionalGeneration", "Inkling2LoopForConditionalGeneration"), inkling.inkling2),
    "NemotronHForCausalLM": mamba.nemotron_h,
    **dict.fromkeys(("Step3p7ForConditionalGeneration", "Step3p5ForCausalLM"), mixtures.step3),
    **dict.fromkeys(("Olmo2ForCausalLM", "Olmo3ForCausalLM"), olmo),
}
"""Architecture -> how an engine loads it."""
