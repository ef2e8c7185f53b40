"""The few calls of CUDA's driver that torch does not offer: copies by address, in batches, and of boxes.

torch copies tensors: a strided box in page-locked memory would be gathered by the processor first, and each copy costs
Python several microseconds. Addresses, here and in what calls this, are integers. Calls that only put something on a
stream keep the interpreter lock: they take a microsecond, and with many threads getting the lock back takes far longer.
`wait` releases it. Source: CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import permutations
from typing import Any, Final

import torch

from loadmaster.errors import LoadError

_HOST: Final = 1  # CU_MEMORYTYPE_HOST
_DEVICE: Final = 2  # CU_MEMORYTYPE_DEVICE
_IN_STREAM_ORDER: Final = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
_DISABLE_TIMING: Final = 2  # CU_EVENT_DISABLE_TIMING
_NOT_READY: Final = 600  # CUDA_ERROR_NOT_READY

_ADDRESS = ctypes.c_uint64
_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t


class _Box(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("src_x", _SIZE),
        ("src_y", _SIZE),
        ("src_type", ctypes.c_int),
        ("src_host", _POINTER),
        ("src_device", _ADDRESS),
        ("src_array", _POINTER),
        ("src_pitch", _SIZE),
        ("dst_x", _SIZE),
        ("dst_y", _SIZE),
        ("dst_type", ctypes.c_int),
        ("dst_host", _POINTER),
        ("dst_device", _ADDRESS),
        ("dst_array", _POINTER),
        ("dst_pitch", _SIZE),
        ("width", _SIZE),
        ("height", _SIZE),
    )


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes: the order in which sources are accessed, two hints of places, flags."""

    _fields_ = (
        ("order", ctypes.c_int),
        ("src_hint", ctypes.c_int * 2),
        ("dst_hint", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
    )


class Driver:
    """The driver's library. A thread that calls it must have set its device: ``torch.cuda.set_device``.

    Raises:
        LoadError: there is no driver. Each call raises it too, with the driver's reason.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.PyDLL("libcuda.so.1")
        except OSError as error:
            raise LoadError(f"CUDA's driver cannot be opened: {error}") from error
        self._to_device = self._function("cuMemcpyHtoDAsync_v2", _ADDRESS, _POINTER, _SIZE, _POINTER)
        self._between = self._function("cuMemcpyDtoDAsync_v2", _ADDRESS, _ADDRESS, _SIZE, _POINTER)
        self._box = self._function("cuMemcpy2DAsync_v2", _POINTER, _POINTER)
        columns = (_POINTER, _POINTER, _POINTER, _SIZE)
        self._batch = self._function(  # of CUDA 13; earlier drivers copy one by one
            "cuMemcpyBatchAsync_v2", *columns, _POINTER, _POINTER, _SIZE, _POINTER
        )
        self._create = self._function("cuEventCreate", _POINTER, ctypes.c_uint)
        self._destroy = self._function("cuEventDestroy_v2", _POINTER)
        self._record = self._function("cuEventRecord", _POINTER, _POINTER)
        self._query = self._function("cuEventQuery", _POINTER)
        self._synchronise = ctypes.CDLL("libcuda.so.1").cuEventSynchronize
        self._synchronise.argtypes = (_POINTER,)
        self._attributes = _Attributes(order=_IN_STREAM_ORDER)
        self._first = ctypes.c_size_t(0)  # the attributes hold from the first copy on

    def _function(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._library, name, None)
        if function is not None:
            function.argtypes = arguments
        return function

    @property
    def has_batches(self) -> bool:
        """Whether `batch` may be called."""
        return self._batch is not None

    def event(self) -> int:
        """Return a new event of the thread's device."""
        made = _POINTER()
        self._check("cuEventCreate", self._create(ctypes.addressof(made), _DISABLE_TIMING))
        return made.value or 0

    def record(self, event: int, stream: int) -> None:
        """Record ``event`` on ``stream``: it is done when all that is on the stream now is done."""
        self._check("cuEventRecord", self._record(event, stream))

    def is_done(self, event: int) -> bool:
        """Return whether ``event`` is done."""
        status: int = self._query(event)
        if status == _NOT_READY:
            return False
        self._check("cuEventQuery", status)
        return True

    def wait(self, event: int) -> None:
        """Wait until ``event`` is done."""
        if not self.is_done(event):
            self._check("cuEventSynchronize", self._synchronise(event))

    def destroy(self, event: int) -> None:
        """Destroy an event."""
        self._check("cuEventDestroy", self._destroy(event))

    def to_device(self, to: int, source: int, num_bytes: int, stream: int) -> None:
        """Copy bytes from page-locked memory to a device."""
        self._check("cuMemcpyHtoDAsync", self._to_device(to, source, num_bytes, stream))

    def connect(self, devices: Sequence[torch.device]) -> None:
        """Enable access between the devices' memory, where the hardware can. torch does so before its first copy between two.

        Without it, the driver takes copies between devices through the host.
        """
        for one, other in permutations(devices, 2):
            torch.zeros(1, device=one).to(other)

    def between(self, to: int, source: int, num_bytes: int, stream: int) -> None:
        """Copy bytes from device to device."""
        self._check("cuMemcpyDtoDAsync", self._between(to, source, num_bytes, stream))

    def batch(self, to: int, sources: int, sizes: int, count: int, stream: int) -> None:
        """Copy many ranges at once, in any order: the addresses of three arrays of 64-bit numbers, ``count`` each."""
        attributes, first = ctypes.addressof(self._attributes), ctypes.addressof(self._first)
        self._check("cuMemcpyBatchAsync", self._batch(to, sources, sizes, count, attributes, first, 1, stream))

    def box(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int) -> None:
        """Copy ``height`` runs of ``width`` bytes from page-locked memory to a device; pitches are bytes from run to run."""
        box = _Box(
            src_type=_HOST, src_host=source, src_pitch=source_pitch,
            dst_type=_DEVICE, dst_device=to, dst_pitch=to_pitch,
            width=width, height=height,
        )  # fmt: skip
        self._check("cuMemcpy2DAsync", self._box(ctypes.addressof(box), stream))

    def _check(self, name: str, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise LoadError(f"{name} failed: {(text.value or b'unknown error').decode()} ({status})")
