"""Which engine serves: the choice, from what is known before anything is loaded. Starts none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadmaster.errors import UnsupportedError

if TYPE_CHECKING:
    from loadmaster.integrations.vllm.installed import Installed
    from loadmaster.plan import Plan

ENGINES: Final = ("auto", "native", "vllm")


@dataclass(frozen=True)
class Choice:
    """``native`` or ``vllm``, and why."""

    engine: str
    reason: str

    def __str__(self) -> str:
        return f"engine: {self.engine} ({self.reason})"


def choose(
    wanted: str,
    installed: Installed | None,
    *,
    num_ranks: int,
    device: str | None = None,
    native_lacks: UnsupportedError | None = None,
    cpu_lacks: str | None = None,
) -> Choice:
    """Choose an engine.

    ``device`` is what the user asked for, if anything. ``native_lacks`` is why the native engine cannot run the plan, and
    ``cpu_lacks`` why vLLM cannot on a CPU; None: it can.

    Raises:
        UnsupportedError: the engine that is wanted, or with ``auto`` either, cannot serve this here.
    """
    if wanted == "native":
        if native_lacks is not None:
            raise native_lacks
        return Choice("native", "--engine native")
    refused = _never(installed, device)
    if wanted == "vllm":
        if refused is not None:
            raise UnsupportedError(f"--engine vllm: {refused}", hint=_hint(installed))
        return Choice("vllm", f"--engine vllm; {installed}")
    refused = refused or _not_here(installed, num_ranks, device, cpu_lacks)
    if refused is None:
        assert installed is not None
        place = "a CPU" if installed.build == "cpu" else f"{num_ranks} of {installed.num_devices} GPUs"
        return Choice("vllm", f"{installed} runs here, on {place}")
    if native_lacks is None:
        return Choice("native", refused)
    hint = "; or ".join(h for h in (native_lacks.hint, _hint(installed)) if h)
    raise UnsupportedError(f"no engine serves this. native: {native_lacks.message}. vllm: {refused}", hint=hint)


def _never(installed: Installed | None, device: str | None) -> str | None:
    """Return why vLLM cannot be used even if the user insists."""
    if installed is None:
        return "vLLM is not installed in this environment"
    if not installed.is_registered:
        return f"{installed} would not find the load format, which comes with the installed package as an entry point"
    if device is not None and device != installed.build:
        return f"--device {device}, and {installed} is built for {installed.build}"
    return None


def _not_here(installed: Installed | None, num_ranks: int, device: str | None, cpu_lacks: str | None) -> str | None:
    assert installed is not None
    if installed.num_devices is None:
        return f"whether there is a device for {installed} is not known here; --engine vllm insists"
    if installed.build == "cpu":
        return None if cpu_lacks is None else f"{installed} is built for CPUs, and {cpu_lacks}"
    if installed.num_devices == 0:
        return f"{installed} is built for CUDA GPUs, and there is none here"
    if installed.num_devices < num_ranks:
        return f"the layout needs {num_ranks} GPUs, and here are {installed.num_devices}; --engine vllm insists"
    return None


def _hint(installed: Installed | None) -> str | None:
    if installed is None:
        return "pip install 'loadmaster[vllm]'"
    if not installed.is_registered:
        return "install loadmaster beside vLLM, and name it in VLLM_PLUGINS where that is set"
    return None


def cpu_lacks(plan: Plan, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return what vLLM 0.32 would miss to run a plan on this CPU, as far as the native engine does without."""
    if plan.family.describe(plan.config).values.get("index_topk") is not None:
        return "on a CPU vLLM has no sparse attention"
    has_amx = cpuinfo.exists() and "amx_tile" in cpuinfo.read_text(encoding="utf-8")
    if not has_amx and any(s.format == "fp8_block" for r in range(plan.num_ranks) for s in plan.rank(r).specs):
        return "on a CPU vLLM computes FP8 with AMX alone, which this one lacks"
    return None
