"""Text models with recurrent or other unusual layers, as vLLM has them. OLMo-Hybrid is apart: `test_olmo_hybrid`."""

from __future__ import annotations

from typing import Any, Final

from loadmaster.audit.ranks import Rank
from tests.architectures.test_nemotron_h import PUZZLE
from tests.architectures.test_text_models import MODELS
from tests.integrations.vllm.golden import CUT, SPREAD_ALONE, WHOLE
from tests.integrations.vllm.text_case import WITH_EXPERTS, TextCase, text

WITHOUT_STAGES: Final = WHOLE + CUT
TIED, UNTIED = ({"tie_word_embeddings": tied} for tied in (True, False))
SIZES: Final = {"conv_dim": 128, "block_dim": 128}
"""What vLLM reads in LFM2's config instead of ``hidden_size``."""

GRANITE: Final = {"mamba_d_head": 32, "mamba_expand": 2, "num_experts_per_tok": 2}
LFM2: Final = text("Lfm2ForCausalLM", "lfm2", **TIED)

PUZZLE_CONFIG: Final = """
from transformers import PretrainedConfig

LETTERS = {"mamba": "M", "moe": "E", "attention": "*", "mlp": "-"}
DEFAULTS = {
    "layer_norm_epsilon": 1e-5, "mamba_hidden_act": "silu", "mlp_hidden_act": "relu2", "use_conv_bias": True,
    "use_bias": False, "mlp_bias": False, "attention_bias": False, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "num_experts_per_tok": 2, "moe_latent_size": None, "chunk_size": 128,
}


class PuzzleConfig(PretrainedConfig):
    model_type = "nemotron_h_puzzle"

    def __init__(self, block_configs=(), **values):
        super().__init__(**{**DEFAULTS, **values})
        self.block_configs = list(block_configs)
        self.hybrid_override_pattern = "".join(LETTERS[block["block_type"]] for block in block_configs)

    def get_nemotron_h_config_for_layer(self, layer):
        own = {k: v for k, v in self.block_configs[layer].items() if v is not None}
        return PretrainedConfig(**{**self.__dict__, **own})
"""
"""Puzzle's config class is in its releases alone: this one has what vLLM reads of it."""

ALIKE: Final[list[dict[str, Any]]] = [
    {k: v for k, v in block.items() if k != "ssm_state_size"} for block in PUZZLE["block_configs"]
]

CASES: Final[dict[str, TextCase]] = {
    "lfm2": TextCase(LFM2, SIZES),
    "lfm2, as wide as stated": TextCase({**LFM2, "block_auto_adjust_ff_dim": False}, SIZES, ranks=CUT[1:]),
    "lfm2-moe": TextCase(
        text("Lfm2MoeForCausalLM", "lfm2_moe", num_dense_layers=1, num_experts_per_tok=2, **TIED), ranks=WITH_EXPERTS
    ),
    "lfm2-vl": TextCase(
        {
            "architectures": ["Lfm2VlForConditionalGeneration"],
            "model_type": "lfm2_vl",
            "dtype": "bfloat16",
            "text_config": {**MODELS["Lfm2ForCausalLM"], "model_type": "lfm2", **TIED, **SIZES},
        },
        engine={"language_model_only": True},
        ranks=(Rank((1, 2), (1, 2)),),
    ),
    "granite-4": TextCase(
        text("GraniteMoeHybridForCausalLM", "granitemoehybrid", **GRANITE, **TIED), ranks=WITHOUT_STAGES + SPREAD_ALONE
    ),
    "granite-4, dense": TextCase(
        text(
            "GraniteMoeHybridForCausalLM",
            "granitemoehybrid",
            **{**GRANITE, **UNTIED, "num_local_experts": 0, "attention_bias": True},
        ),
        ranks=CUT[1:],
    ),
    "falcon-h1": TextCase(text("FalconH1ForCausalLM", "falcon_h1", mamba_d_head=8, **UNTIED)),
    "falcon-h1, tied": TextCase(
        text(
            "FalconH1ForCausalLM",
            "falcon_h1",
            **{**TIED, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_rms_norm": False},
        ),
        ranks=CUT[1:],
    ),
    "jamba": TextCase(text("JambaForCausalLM", "jamba", num_experts_per_tok=2, **UNTIED), ranks=WITH_EXPERTS),
    "mamba": TextCase(text("MambaForCausalLM", "mamba", **TIED)),
    "mamba, untied": TextCase(text("MambaForCausalLM", "mamba", **UNTIED), ranks=CUT[1:]),
    "falcon-mamba": TextCase(text("FalconMambaForCausalLM", "falcon_mamba", **TIED)),
    "mamba-2": TextCase(text("Mamba2ForCausalLM", "mamba2", **UNTIED), ranks=WITHOUT_STAGES),
    "mamba-2, tied": TextCase(text("Mamba2ForCausalLM", "mamba2", **TIED), ranks=CUT[1:]),
    "zamba2": TextCase(text("Zamba2ForCausalLM", "zamba2", use_mem_rope=True, mamba_d_state=16), ranks=WITHOUT_STAGES),
    "zamba2, plain": TextCase(
        text(
            "Zamba2ForCausalLM",
            "zamba2",
            **{"mamba_d_state": 16, "mamba_ngroups": 1, "use_shared_attention_adapter": False},
        ),
        ranks=CUT[1:],
    ),
    "gemma-3n": TextCase(text("Gemma3nForCausalLM", "gemma3n_text", **TIED), ranks=WITHOUT_STAGES),
    "nemotron-puzzle": TextCase(
        {**PUZZLE, "dtype": "bfloat16", "block_configs": ALIKE},
        {"auto_map": {"AutoConfig": "configuration_puzzle.PuzzleConfig"}},
        {"trust_remote_code": True},
        WITH_EXPERTS,
        files={"configuration_puzzle.py": PUZZLE_CONFIG},
    ),
}
