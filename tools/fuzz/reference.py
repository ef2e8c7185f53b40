"""What the independent reference of the loader's tests says that a rank loads: families and formats that it knows."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from loadmaster.parallel import ParallelLayout
from tests.loader.reference import Reference

LLAMA = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
DEEPSEEK = ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")


def reference(folder: Path, layout: ParallelLayout, rank: int) -> dict[str, torch.Tensor] | None:
    """Return a rank's parameters; None where the reference does not know the family, the format or the layout."""
    config = json.loads((folder / "config.json").read_text())
    quantisation = config.get("quantization_config")
    plain = config["architectures"][0] in LLAMA and not quantisation
    blocks = (
        config["architectures"][0] in DEEPSEEK and quantisation and quantisation.get("weight_block_size") == [128] * 2
    )
    if not (plain or blocks) or layout.data_parallel_size > 1 or config["vocab_size"] % layout.tensor_parallel_size:
        return None
    at = layout.coordinate(rank)
    pp, tp = (at.pp_rank, layout.pipeline_parallel_size), (at.tp_rank, layout.tensor_parallel_size)
    return Reference(folder, pp=pp, tp=tp, ep=layout.enable_expert_parallel, mtp=layout.num_draft_layers > 0).params
