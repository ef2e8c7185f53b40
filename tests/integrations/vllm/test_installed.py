"""Which vLLM is there, and how many GPUs: asked of metadata and of NVML, neither of which is real here."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import pytest

from loadmaster.integrations.vllm.installed import find_vllm, num_gpus


class Nvml:
    """A driver's library with three GPUs."""

    status = 0

    def __init__(self, name: str) -> None:
        assert name == "libnvidia-ml.so.1"

    def nvmlInit_v2(self) -> int:  # noqa: N802  # NVML's names
        return self.status

    def nvmlShutdown(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 3
        return 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 3),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
    ],
)
def test_gpus_are_those_of_the_driver_that_are_visible(
    environment: Mapping[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Nvml)
    assert num_gpus(environment) == expected


def test_a_library_without_its_driver_and_no_library_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driverless(Nvml):
        status = 9  # NVML_ERROR_DRIVER_NOT_LOADED

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", Driverless)
    assert num_gpus({}) == 0
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert num_gpus({}) == 0


@pytest.mark.vllm
def test_the_vllm_of_this_environment_is_found_as_vllm_sees_itself() -> None:
    from vllm.platforms import current_platform

    found = find_vllm({})
    assert found is not None
    assert found.build == ("cpu" if current_platform.is_cpu() else "cuda")
    assert found.is_registered
    assert not getattr(find_vllm({"VLLM_PLUGINS": "other"}), "is_registered", True)
