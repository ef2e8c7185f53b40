"""A GPU that is not there: vLLM for CUDA builds and loads models on the host, in the layouts that it uses on a GPU.

vLLM asks the driver's libraries for a GPU when it is imported. If these are the stubs of ``tools/cuda_stub.py``, it takes its
CUDA platform. Then memory that is asked for on a GPU is given on the host, and streams and events do nothing. Nothing can be
computed, so that vLLM's processing of weights fails for most formats.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

MARK: Final = "loadmaster_stub"
"""A function that only the stub of the driver has."""


H100: Final = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=85520809984,
    warp_size=32,
    shared_memory_per_block_optin=232448,
)
"""The properties that torch reports of the device that the stub of NVML names."""


def is_pretended() -> bool:
    """Whether the driver is the stub."""
    try:
        return hasattr(ctypes.CDLL("libcuda.so.1"), MARK)
    except OSError:
        return False


def pretend() -> None:
    """Let this process make streams and events and ask for its device, and let kernels accept heads of any size.

    Without a device vLLM has a placeholder of Triton; kernels of Mamba ask its configs for their stages while they are imported,
    and layers of OLMo-Hybrid set its allocator.
    """
    from vllm.triton_utils import HAS_TRITON, triton
    from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend
    from vllm.v1.worker.workspace import init_workspace_manager

    init_workspace_manager(torch.device("meta"))  # what kernels compute in, which is never used
    if not HAS_TRITON:
        triton.Config, triton.set_allocator = _config, _Nothing
    MLAPrefillBackend.validate_configuration = classmethod(lambda cls, *given: [])
    cuda: Any = torch.cuda
    cuda.Stream = cuda.Event = _Nothing
    cuda.current_stream = _Nothing
    cuda.current_device = lambda: 0
    torch.accelerator.current_device_index = lambda: 0
    cuda.get_device_capability = lambda device=None: (H100.major, H100.minor)
    cuda.get_device_properties = lambda device=None: H100


def _config(kwargs: dict[str, Any], *, num_warps: int = 4, num_stages: int = 3, **more: Any) -> SimpleNamespace:
    """Return a config of a kernel, as Triton's with its defaults."""
    return SimpleNamespace(kwargs=kwargs, num_warps=num_warps, num_stages=num_stages, **more)


class _Nothing:
    """A stream or an event."""

    def __init__(self, *args: Any, **more: Any) -> None:
        pass


class on_the_host(TorchFunctionMode):  # noqa: N801  # a context manager
    """A context in which tensors that are made on a GPU are made on the host."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` with another device; the view that a GPU has of memory of the host is that memory."""
        if getattr(func, "__name__", "").startswith("get_cuda_view_from_cpu_tensor"):
            return args[0]
        more = dict(kwargs or {})
        device = more.get("device")
        if isinstance(device, int) or str(device).startswith("cuda"):  # torch.cuda.current_device() is a number
            more["device"] = "cpu"
        if more.get("pin_memory"):  # the driver would do that
            more["pin_memory"] = False
        return func(*args, **more)
