"""What vLLM 0.32 cannot run on a CPU, although the native engine can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from loadmaster.plan import Plan

CPUINFO: Final = Path("/proc/cpuinfo")


def unsupported_on_cpu(plan: Plan, cpuinfo: Path = CPUINFO) -> str | None:
    """Return why vLLM cannot run a plan on this CPU; None if it can."""
    if plan.family.describe(plan.config).values.get("index_topk") is not None:
        return "on a CPU vLLM has no sparse attention"
    if not _has_amx(cpuinfo) and any(
        s.format == "fp8_block" for r in range(plan.num_ranks) for s in plan.rank(r).specs
    ):
        return "on a CPU vLLM needs AMX to compute in FP8, and this CPU has no AMX"
    return None


def _has_amx(cpuinfo: Path) -> bool:
    return cpuinfo.exists() and "amx_tile" in cpuinfo.read_text(encoding="utf-8")
