"""DeepSeek before the sparse ones, and the models around it, as vLLM has them."""

from __future__ import annotations

from typing import Any, Final

from tests.architectures.test_text_models import MLA
from tests.integrations.vllm.text_around import SOME
from tests.integrations.vllm.text_case import WITH_EXPERTS, TextCase, text
from tests.integrations.vllm.text_remote import CODE

SOFTMAX: Final = {"scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0}
SIGMOID: Final = {"scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 1.0}
HEADS: Final[dict[str, Any]] = {
    **{k: v for k, v in MLA.items() if "rank" not in k and "head_dim" not in k},
    **{"qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0, "use_mla": False, "topk_method": "greedy"},
    **SOFTMAX,
    "first_k_dense_replace": 1,
}
"""Attention with heads, without a latent."""

TOKEN: Final = {
    "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast", '
    '"extra_special_tokens": {"image_token": "<image>"}}'
}
UNCOMPRESSED: Final = {"q_lora_rank": None}


def ocr(architecture: str, *beside: str) -> TextCase:
    """Return a DeepSeek-OCR."""
    language = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **HEADS}
    image = {"tile_tag": "2D", "global_view_pos": "head", "candidate_resolutions": [[28, 28]]}
    projector = {"n_embed": HEADS["hidden_size"], "input_dim": 64, "projector_type": "linear"}
    return TextCase(
        {
            **{"architectures": [architecture], "model_type": "deepseek_vl_v2", "dtype": "bfloat16"},
            "language_config": language,
        },
        {
            "language_config": {**language, "q_lora_rank": None, "kv_lora_rank": None},
            "projector_config": projector,
            **image,
        },
        {"language_model_only": True, "skip_tokenizer_init": False},
        SOME,
        beside=beside,
        files=TOKEN,
    )


CASES: Final[dict[str, TextCase]] = {
    "deepseek-1": TextCase(
        text("DeepseekForCausalLM", "deepseek", **{**dict.fromkeys(MLA), **HEADS}),
        {"auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}},
        {"trust_remote_code": True},
        WITH_EXPERTS,
        files={"configuration_tiny.py": CODE.format(base="LlamaConfig", model_type="deepseek", section="text_config")},
    ),
    "deepseek-v2": TextCase(
        text("DeepseekV2ForCausalLM", "deepseek_v2", q_lora_rank=176, topk_method="group_limited_greedy", **SOFTMAX),
        ranks=WITH_EXPERTS,
    ),
    "deepseek-v2-lite": TextCase(
        text("DeepseekV2ForCausalLM", "deepseek_v2", topk_method="greedy", **SOFTMAX, **UNCOMPRESSED),
        UNCOMPRESSED,
        ranks=WITH_EXPERTS,
    ),
    "moonlight": TextCase(
        text("DeepseekV3ForCausalLM", "deepseek_v3", topk_method="noaux_tc", **SIGMOID, **UNCOMPRESSED),
        UNCOMPRESSED,
        ranks=WITH_EXPERTS,
    ),
    "deepseek-ocr": ocr("DeepseekOCRForCausalLM", "model.image_newline", "model.view_seperator"),
    "deepseek-ocr-2": ocr("DeepseekOCR2ForCausalLM", "model.view_seperator"),
}
