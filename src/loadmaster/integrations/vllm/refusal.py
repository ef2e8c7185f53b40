"""The error that names the parameters that were not written, and what the checkpoint has in their place."""

from __future__ import annotations

import torch

from loadmaster.errors import LoadError
from loadmaster.integrations.vllm.built_model import held_experts
from loadmaster.integrations.vllm.needs import expert_sources, sources
from loadmaster.integrations.vllm.reload import SHOWN
from loadmaster.integrations.vllm.unwritten import Gap


def refusal(rank: str, gaps: list[Gap], stored: list[str], model: torch.nn.Module, writer: str) -> LoadError:
    """Return the error of a rank whose model has ``gaps``; ``stored`` are the model's names of all stored tensors."""
    fused = getattr(model, "packed_modules_mapping", {})
    more = f" and {len(gaps) - SHOWN:,} more" if len(gaps) > SHOWN else ""
    count = f"{len(gaps):,} parameter{'s were' if len(gaps) > 1 else ' was'}"
    lines = [f"{rank}: {count} not written by {writer}"]
    for gap in gaps[:SHOWN]:
        share = "no byte" if gap.missing_bytes == gap.num_bytes else f"{gap.num_bytes - gap.missing_bytes:,} bytes"
        where = (
            f"; slices {', '.join(map(str, gap.slices[:8]))}{', …' if len(gap.slices) > 8 else ''} lack some"
            if gap.slices
            else ""
        )
        lines += ["", f"  {gap.param}  {gap.dtype} {list(gap.shape)}: {share} of {gap.num_bytes:,} written{where}"]
        missing = _missing_experts(gap, model, stored) or sources(gap.param, fused, stored)
        lines += [f"    {line}" for line in missing]
    if more:
        lines += ["", f" {more}"]
    return LoadError(
        "\n".join(lines),
        hint="the model would generate garbage; for supported families `loadmaster plan` lists what the checkpoint lacks",
    )


def _missing_experts(gap: Gap, model: torch.nn.Module, stored: list[str]) -> list[str]:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    module = model.get_submodule(gap.param.rpartition(".")[0])
    if not isinstance(module, RoutedExperts):
        return []
    held = held_experts(module)
    gate, up, down = module.ckpt_gate_proj_name, module.ckpt_up_proj_name, module.ckpt_down_proj_name
    parts = {"w13": (gate, up) if up else (gate,), "w2": (down,)}
    return expert_sources(gap.param, parts, [held[i] for i in gap.slices if i < len(held)], stored)
