"""The names of vLLM that this package uses: the list is complete, and the installed vLLM has them all."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import loadmaster
from loadmaster.integrations.vllm.built_model import held_experts
from tools import vllm_door
from tools.vllm_door import DOOR, VERSIONS, missing

SOURCE = Path(loadmaster.__file__).parent
MANAGER = "vllm.model_executor.layers.fused_moe.expert_map_manager:ExpertMapManager"


def test_every_name_that_is_imported_from_vllm_is_listed() -> None:
    listed = {name for names in DOOR.values() for name in names}
    listed |= {place.rpartition(":")[2] for place in DOOR}
    listed |= {module for place in DOOR for module in place.partition(":")[0].split(".")}
    files = [*(SOURCE / "integrations" / "vllm").glob("*.py"), *(SOURCE / "audit").glob("*.py")]
    imported = {
        alias.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm"
        for alias in node.names
    }
    assert imported - listed - {"cpu", "cpu_moe", "CpuPlatform"} == set()  # only overridden, on a CPU


def test_a_name_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 0.33 removed ``get_local_expert_ids``, by which experts were once asked for."""
    module, _, owner = MANAGER.partition(":")
    file = tmp_path.joinpath(*module.split(".")[1:]).with_suffix(".py")
    file.parent.mkdir(parents=True)
    file.write_text(f"class {owner}:\n    def __init__(self):\n        self.expert_map = None\n")
    monkeypatch.setattr(vllm_door, "DOOR", {MANAGER: ("expert_map", "get_local_expert_ids"), "vllm.gone": ("it",)})
    assert list(missing(tmp_path)) == [f"{MANAGER}.get_local_expert_ids", "vllm.gone"]


class Experts(torch.nn.Module):
    """Has of vLLM's module of experts what says which experts it holds."""

    def __init__(self, slots: list[int] | None, num_experts: int, num_copies: int = 0) -> None:
        super().__init__()
        self.moe_config = type("", (), {"num_experts": num_experts + num_copies, "num_logical_experts": num_experts})
        self.expert_map_manager = type("", (), {"expert_map": None if slots is None else torch.tensor(slots)})


def test_a_modules_experts_are_in_the_order_of_its_slots() -> None:
    assert held_experts(Experts(None, 3)) == (0, 1, 2)
    assert held_experts(Experts([-1, -1, 0, 1], 4)) == (2, 3)
    assert held_experts(Experts([1, -1, 0, -1], 4)) == (2, 0)
    assert held_experts(Experts([0, 1, -1, -1, 2], 4)) == (0, 1)  # the fifth is a fused shared expert
    assert held_experts(Experts([-1, -1, -1, 0, 1, 2], 4, 2)) == (3, 0, 1)  # two copies follow the experts


@pytest.mark.vllm
def test_the_installed_vllm_has_every_name() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    import vllm

    assert vllm.__version__.startswith(VERSIONS)
    assert list(missing(Path(spec.origin).parent)) == []
