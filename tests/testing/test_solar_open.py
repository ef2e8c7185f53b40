"""Solar-Open as another package would bring it, made by the guide alone: tables, kit, entry point, commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures import Config, Schema, Tensor, blocks, by_rows
from loadmaster.testing import (
    FamilyFaults,
    check_family,
    check_plans,
    compare_with_transformers,
    unreached,
    write_checkpoint,
)
from tests.architectures.packages import install
from tests.testing.packages.loadmaster_solar_open import FAMILY, schema

SOURCE = Path(__file__).parent / "packages" / "loadmaster_solar_open.py"
PUBLISHED: dict[str, Any] = {
    "architectures": ["SolarOpenForCausalLM"],
    "model_type": "solar_open",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1280,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 196608,
}
CONFIG: dict[str, Any] = {
    **PUBLISHED,
    "head_dim": 16,
    "hidden_size": 64,
    "max_position_embeddings": 256,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("change", [{}, {"attention_bias": True}, {"quantization_config": FP8}])
def test_the_tables_are_right(change: dict[str, Any], tmp_path: Path) -> None:
    done = check_family(FAMILY, CONFIG | change, tmp_path)
    assert done == (
        "check_tables", "check_plans", "check_loading", "compare_with_transformers", "compare_placements"
    )  # fmt: skip


def test_the_published_size_is_that_of_transformers() -> None:
    compare_with_transformers(FAMILY, PUBLISHED)
    left = unreached(FAMILY, PUBLISHED, CONFIG | {"attention_bias": True})
    assert left == {
        *blocks.gated_mlp_spelling(),
        *(f"shared.{part}_bias" for part in ("gate", "up", "down")),
        *("attn.q_norm", "attn.k_norm", "attn.o_bias"),
    }


def test_keys_of_one_head_are_not_what_transformers_has() -> None:
    def narrow(c: Config) -> Schema:
        made = schema(c)
        other = Tensor("attn.k", (16, 64), by_rows(16, repeat=True), quantised=True)
        return replace(
            made, kinds={k: tuple(other if t.name == other.name else t for t in ts) for k, ts in made.kinds.items()}
        )

    with pytest.raises(FamilyFaults, match=r"layers.0.self_attn.k_proj.weight is \[16, 64\], but \[32, 64\] in transf"):
        compare_with_transformers(replace(FAMILY, schema=narrow), CONFIG)


def test_a_tensor_that_the_schema_forgets_is_what_transformers_has_more() -> None:
    def forget(c: Config) -> Schema:
        made = schema(c)
        return replace(
            made, kinds={k: tuple(t for t in ts if t.name != "moe.router_bias") for k, ts in made.kinds.items()}
        )

    with pytest.raises(FamilyFaults, match=r"has model.layers.0.mlp.gate.e_score_correction_bias \[8\], but no table"):
        compare_with_transformers(replace(FAMILY, schema=forget), CONFIG)


def test_key_heads_that_may_not_repeat_are_refused_over_more_ranks_than_heads(tmp_path: Path) -> None:
    def once(c: Config) -> Schema:
        made = schema(c)
        return replace(
            made,
            kinds={
                k: tuple(replace(t, placement=by_rows(16)) if t.name == "attn.k" else t for t in ts)
                for k, ts in made.kinds.items()
            },
        )

    with pytest.raises(
        FamilyFaults, match=r"tp 4: attn.k .*2 unit\(s\) of 16 do not divide over 4 tensor-parallel ranks"
    ):
        check_plans(replace(FAMILY, schema=once), CONFIG, tmp_path)


def loadmaster(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "loadmaster", *map(str, args)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_commands_find_it_once_its_package_is_installed(tmp_path: Path) -> None:
    write_checkpoint(FAMILY, CONFIG, tmp_path / "tiny")
    before = loadmaster(tmp_path / "site", "plan", tmp_path / "tiny")
    assert before.returncode == 1
    assert "'SolarOpenForCausalLM' is not known" in before.stderr

    install(tmp_path / "site", "loadmaster_solar_open", SOURCE.read_text(), "loadmaster_solar_open:FAMILY")
    done = loadmaster(tmp_path / "site", "plan", tmp_path / "tiny", "-pp", 3, "-tp", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["proven"]
    done = loadmaster(tmp_path / "site", "load", tmp_path / "tiny", "-pp", 2, "-tp", 4, "--enable-expert-parallel")
    assert done.returncode == 0, done.stderr
    done = loadmaster(tmp_path / "site", "generate", tmp_path / "tiny", "--prompt", "Hello")
    assert done.returncode == 1
    assert "SolarOpenForCausalLM is of the family solar_open" in " ".join(done.stderr.split())
