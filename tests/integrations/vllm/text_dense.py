"""Dense text models that are no presets, as vLLM has them."""

from __future__ import annotations

from typing import Final

from tests.integrations.vllm.golden import CUT, WHOLE
from tests.integrations.vllm.text_case import TextCase, text

SCALES: Final = {"scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": 128}
WINDOWS: Final = {"layer_types": ["sliding_attention", "full_attention"] * 2}

TRITON: Final = {"attention_config": {"backend": "TRITON_ATTN"}}
"""They ask for what other kernels do not have; it needs heads of at least 32."""

NAS: Final = """
from types import SimpleNamespace

from transformers import LlamaConfig


class NasConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **more):
        super().__init__(**more)
        self.block_configs = [_read(of) for of in block_configs]

    def to_dict(self):
        return {k: v for k, v in super().to_dict().items() if k != "block_configs"}


def _read(of):
    return SimpleNamespace(**{k: _read(v) if isinstance(v, dict) else v for k, v in of.items() if v is not None})
"""
MIMO: Final = """
from transformers import Qwen2Config


class MiMoConfig(Qwen2Config):
    model_type = "mimo"
"""
"""Code of repositories that reads their configs."""

CASES: Final[dict[str, TextCase]] = {
    "granite": TextCase(text("GraniteForCausalLM", "granite")),
    "granite, tied": TextCase(text("GraniteForCausalLM", "granite", tie_word_embeddings=True)),
    "granite-swa": TextCase(text("GraniteSWAForCausalLM", "granite_swa")),
    "glm-4": TextCase(text("Glm4ForCausalLM", "glm4")),
    "seed-oss": TextCase(text("SeedOssForCausalLM", "seed_oss")),
    "smollm-3": TextCase(text("SmolLM3ForCausalLM", "smollm3")),
    "ministral-3": TextCase(text("Ministral3ForCausalLM", "ministral3")),
    "exaone-4": TextCase(text("Exaone4ForCausalLM", "exaone4", num_nextn_predict_layers=None, **WINDOWS)),
    "olmo": TextCase(text("OlmoForCausalLM", "olmo")),
    "arcee": TextCase(text("ArceeForCausalLM", "arcee")),
    "nemotron": TextCase(text("NemotronForCausalLM", "nemotron")),
    "solar": TextCase(
        text("SolarForCausalLM", "llama"),
        {"bskcn_1": [1], "bskcn_2": [2], "bskcn_3": [3], "bskcn_4": [3], "bskcn_tv": [0.9, 0.8]},
    ),
    "cwm": TextCase(text("CwmForCausalLM", "cwm")),
    "pangu-embedded": TextCase(text("PanguEmbeddedForCausalLM", "llama")),
    "vaultgemma": TextCase(text("VaultGemmaForCausalLM", "vaultgemma")),
    "hyperclova-x": TextCase(text("HyperCLOVAXForCausalLM", "hyperclovax")),
    "gemma": TextCase(text("GemmaForCausalLM", "gemma")),
    "gemma-2": TextCase(text("Gemma2ForCausalLM", "gemma2", **WINDOWS)),
    "cohere": TextCase(text("CohereForCausalLM", "cohere")),
    "cohere-2": TextCase(text("Cohere2ForCausalLM", "cohere2", attention_bias=None, **WINDOWS)),
    "exaone": TextCase(
        text("ExaoneForCausalLM", "llama"),
        {"num_hidden_layers": 4, "activation_function": "silu", "layer_norm_epsilon": 1e-5},
    ),
    "stablelm": TextCase(text("StableLmForCausalLM", "stablelm")),
    "ernie-4.5": TextCase(text("Ernie4_5ForCausalLM", "ernie4_5", use_bias=None)),
    "internlm-3": TextCase(text("InternLM3ForCausalLM", "llama", bias=False)),
    "minicpm": TextCase(
        text("MiniCPMForCausalLM", "llama", tie_word_embeddings=True),
        SCALES,
    ),
    "minicpm-3": TextCase(
        text("MiniCPM3ForCausalLM", "llama", tie_word_embeddings=True),
        SCALES,
    ),
    "chatglm": TextCase(
        text("ChatGLMModel", "chatglm"), {"original_rope": True, "seq_length": 512, "tie_word_embeddings": False}
    ),
    "falcon": TextCase(text("FalconForCausalLM", "falcon")),
    "falcon-11b": TextCase(
        text(
            "FalconForCausalLM",
            "falcon",
            new_decoder_architecture=True,
            num_kv_heads=4,
            num_ln_in_parallel_attn=1,
            tie_word_embeddings=False,
        )
    ),
    "falcon-40b": TextCase(
        text("FalconForCausalLM", "falcon", new_decoder_architecture=True, num_kv_heads=2, bias=True)
    ),
    "gpt-neox": TextCase(text("GPTNeoXForCausalLM", "gpt_neox")),
    "gpt-2": TextCase(text("GPT2LMHeadModel", "gpt2", n_positions=512)),
    "gpt-j": TextCase(text("GPTJForCausalLM", "gptj", n_positions=512)),
    "opt": TextCase(text("OPTForCausalLM", "opt", max_position_embeddings=512)),
    "apertus": TextCase(text("ApertusForCausalLM", "apertus")),
    "orion": TextCase(text("OrionForCausalLM", "llama")),
    "telechat-2": TextCase(
        text("TeleChat2ForCausalLM", "llama"),
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "num_hidden_layers": 4,
            "intermediate_size": 192,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "teleflm": TextCase(text("TeleFLMForCausalLM", "llama"), {"use_mup": False}),
    "jais-2": TextCase(text("Jais2ForCausalLM", "jais2")),
    "mimo": TextCase(text("MiMoForCausalLM", "qwen2")),
    "hunyuan-dense": TextCase(text("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense")),
    "step-1": TextCase(
        text("Step1ForCausalLM", "llama", num_attention_heads=4, hidden_size=256, tie_word_embeddings=True),
        engine=TRITON,
    ),
    "rnj-1": TextCase(text("Rnj1ForCausalLM", "gemma3_text", head_dim=64), engine=TRITON),
    "muse-glimmer": TextCase(text("MuseGlimmerForCausalLM", "muse_glimmer_text")),
    "nemotron-nas": TextCase(
        text("DeciLMForCausalLM", "nemotron-nas", num_key_value_heads=None),
        {"auto_map": {"AutoConfig": "configuration_nas.NasConfig"}, "num_key_value_heads": 4},
        {"trust_remote_code": True},
        files={"configuration_nas.py": NAS},
    ),
    "mimo's draft": TextCase(
        text("MiMoForCausalLM", "mimo", num_nextn_predict_layers=1),
        {"auto_map": {"AutoConfig": "configuration_mimo.MiMoConfig"}},
        {"trust_remote_code": True},
        WHOLE + CUT[1:],
        drafts=True,
        files={"configuration_mimo.py": MIMO},
    ),
    "internlm-2": TextCase(text("InternLM2ForCausalLM", "llama", bias=None)),
    "internlm-2, one head of keys": TextCase(
        text("InternLM2ForCausalLM", "llama", bias=None, num_key_value_heads=1), ranks=CUT
    ),
}
