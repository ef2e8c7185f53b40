"""In which form weights are computed with, chosen before loading: for this device, and for the memory that is free.

Dequantising a weight at each use is slow, and so is arithmetic that a CPU does not have. Where memory allows, weights are
decoded once, while they are loaded. The choice is part of the plan, so the proof covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loadmaster.architectures.targets import NATIVE, NATIVE_DECODED
from loadmaster.findings import gib
from loadmaster.host_memory import free_bytes

if TYPE_CHECKING:
    from loadmaster.plan import ProvenPlan

Weights = Literal["auto", "stored", "decoded"]

RESERVED_BYTES = 1 << 30
"""Host memory that is left for the processes and the KV cache when weights are decoded by default."""

CPU_FLAGS = {"BF16": ("avx512_bf16", "amx_bf16", "bf16"), "F16": ("avx512_fp16", "amx_fp16", "asimdhp")}
"""Features in /proc/cpuinfo (x86 and Arm) with which a CPU computes in a dtype of 16 bits."""


@dataclass(frozen=True)
class RunPlan:
    """A proven plan to run, and in words which dtype and form of weights was chosen, and why."""

    plan: ProvenPlan
    choice: str


def plan_to_run(
    build: Callable[[str | None, str], ProvenPlan],
    *,
    device: str,
    dtype: str | None = None,
    weights: Weights = "auto",
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> RunPlan:
    """Return the plan to run on ``device``. ``build(dtype, target)`` plans and proves.

    ``dtype`` None: the checkpoint's, or F32 on a CPU that has no arithmetic in it. ``weights`` ``auto``: decoded on a CPU if
    they fit its memory, otherwise as stored.
    """
    decoded = weights == "decoded" or (weights == "auto" and device == "cpu")
    plan = build(dtype, NATIVE_DECODED if decoded else NATIVE)
    reasons = []
    if dtype is None and device == "cpu" and not _computes_in(plan.dtype, cpuinfo):
        reasons.append(f"this CPU cannot compute in {plan.dtype}")
        plan = build("F32", NATIVE_DECODED if decoded else NATIVE)
    if weights == "auto" and decoded:
        num_bytes = sum(plan.rank(rank).num_bytes for rank in range(plan.num_ranks))
        free = free_bytes()
        if free is not None and num_bytes + RESERVED_BYTES > free:
            reasons = [f"decoded they take {gib(num_bytes)}, and {gib(free)} are free"]
            decoded, plan = False, build(dtype, NATIVE)
    form = "weights decoded" if decoded else "weights as stored"
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return RunPlan(plan, f"computing in {plan.dtype}, {form}{because}")


def _computes_in(dtype: str, cpuinfo: Path) -> bool:
    if dtype not in CPU_FLAGS:
        return True
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True  # not Linux: nothing is known, so what the checkpoint says is used
    flags = {
        flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()
    }
    return not flags or any(flag in flags for flag in CPU_FLAGS[dtype])
