"""Which engine serves: chosen from what is known before anything is loaded. Starts no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadmaster.errors import UnsupportedError

if TYPE_CHECKING:
    from loadmaster.integrations.vllm.installed import Installed


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
    native_error: UnsupportedError | None = None,
    cpu_reason: str | None = None,
) -> Choice:
    """Choose an engine.

    ``device`` is the device that the user requested, if any. ``native_error`` is why the native engine cannot run the
    plan, and ``cpu_reason`` why vLLM cannot run it on a CPU; None: it can.

    Raises:
        UnsupportedError: the engine that is wanted, or with ``auto`` both engines, cannot serve this model here.
    """
    if wanted == "native":
        if native_error is not None:
            raise native_error
        return Choice("native", "--engine native")
    reason = _not_usable(installed, device)
    if wanted == "vllm":
        if reason is not None:
            raise UnsupportedError(f"--engine vllm: {reason}", hint=_hint(installed))
        return Choice("vllm", f"--engine vllm; {installed}")
    reason = reason or _not_here(installed, num_ranks, device, cpu_reason)
    if reason is None:
        assert installed is not None
        where = "a CPU" if installed.build == "cpu" else f"{num_ranks} of {installed.num_devices} GPUs"
        return Choice("vllm", f"{installed} runs here, on {where}")
    if native_error is None:
        return Choice("native", reason)
    hint = "; or ".join(h for h in (native_error.hint, _hint(installed)) if h)
    raise UnsupportedError(f"no engine can serve this. native: {native_error.message}. vllm: {reason}", hint=hint)


def _not_usable(installed: Installed | None, device: str | None) -> str | None:
    """Return why vLLM cannot be used even with ``--engine vllm``."""
    if installed is None:
        return "vLLM is not installed in this environment"
    if not installed.is_registered:
        return f"{installed} cannot find the load format, because the package's entry point is not installed"
    if device is not None and device != installed.build:
        return f"--device {device}, but {installed} is built for {installed.build}"
    return None


def _not_here(installed: Installed | None, num_ranks: int, device: str | None, cpu_reason: str | None) -> str | None:
    """Return why ``auto`` does not choose vLLM on this host."""
    assert installed is not None
    if installed.num_devices is None:
        return f"cannot detect a device for {installed}; pass --engine vllm to skip this check"
    if installed.build == "cpu":
        return None if cpu_reason is None else f"{installed} is built for CPUs, and {cpu_reason}"
    if installed.num_devices == 0:
        return f"{installed} is built for CUDA GPUs, and this host has none"
    if installed.num_devices < num_ranks:
        return (
            f"the layout needs {num_ranks} GPUs, and this host has {installed.num_devices}; "
            "pass --engine vllm to skip this check"
        )
    return None


def _hint(installed: Installed | None) -> str | None:
    if installed is None:
        return "pip install 'loadmaster[vllm]'"
    if not installed.is_registered:
        return "install loadmaster in vLLM's environment; if VLLM_PLUGINS is set, add loadmaster to it"
    return None
