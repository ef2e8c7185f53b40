"""How tensors are divided, against transformers' own plans: of our families, and of tables that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from loadmaster.architectures import Family, Placement, Tensor, by_columns, by_rows
from loadmaster.architectures.registry import find_family
from loadmaster.synth import PRESETS
from loadmaster.testing import Compared, FamilyFaults, check_tables, compare_placements
from loadmaster.testing.modelling import has_model
from loadmaster.testing.placements import plans_of
from tests.testing.packages.loadmaster_solar_open import FAMILY as SOLAR_OPEN
from tests.testing.test_solar_open import CONFIG as SOLAR_OPEN_CONFIG
from tests.versions import TRANSFORMERS

WITHOUT_A_PLAN = (
    *("deepseek-v4-flash", "deepseek-v4-pro-0813", "kimi-linear", "minimax-m3-mxfp8", "mistral-large-4"),
    *("inkling", "inkling-2", "inkling-2-loop"),
)
"""Models of which transformers' plan names none, or almost none, of the weights."""
OTHERWISE = ("muse-spark-nvfp4", "qwen3.8-flash-next")
"""Models that transformers divides in another way than vLLM, whose way is followed here: Muse-Spark's experts' projections, and
what mixes Qwen4Exp's streams."""
MODELS = [
    name
    for name, p in PRESETS.items()
    if p.format is None and name not in (*WITHOUT_A_PLAN, *OTHERWISE) and has_model(p.config_of(tiny=True))
]

ATTENTION = {"attn.o", "attn.q", "attn.k", "attn.v"}
EXPERTS = set() if TRANSFORMERS >= (5, 21) else {"moe.gate", "moe.up", "moe.down"}
"""Weights of experts, where the tensor-parallel plan names them only since transformers 5.21."""

NOT_IN_A_PLAN = {
    "deepseek-v3": {"attn.o", "attn.q_b", "attn.kv_b"},
    "kimi-k2": {"attn.o", "attn.q_b", "attn.kv_b"},
    "kimi-k2-int4": {"attn.o", "attn.q_b", "attn.kv_b"},
    "qwen2-moe": EXPERTS | {"shared.gate", "shared.up", "shared.down"},
    "qwen3-next": {"linear.out"},
    "qwen3.8": {"linear.out"},
    "qwen3.5-moe": {"linear.out"},
    "mistral-4": {"attn.o", "attn.q_b", "attn.kv_b"},
    "glm-5.3-flash": {f"linear.{part}" for part in ("q", "k", "v", "b", "f_b", "g_b")},
    "hy4-preview": {"attn.gate"},
    "nemotron-3-super": {
        *ATTENTION,
        *("mlp.up", "mlp.down", "shared.up", "shared.down", "mamba.out"),
        *(f"mamba.{part}" for part in ("z", "x", "b", "c", "dt")),
    },
    # of the MTP layer, which transformers does not build; those of decoder layers have a number before them
    "longcat-flash": {"attn.o", "attn.q_b", "attn.kv_b", "mlp.gate", "mlp.up", "mlp.down"},
    "step-3.7-flash": {f"{mlp}.{part}" for mlp in ("mlp", "shared") for part in ("gate", "up", "down")},
    "gpt-oss": ATTENTION | {"moe.gate_up", "moe.down"},
    "gpt-oss-bf16": ATTENTION | {"moe.gate_up", "moe.down"},
    "granite-moe": ATTENTION | EXPERTS,
    "granite-moe-shared": ATTENTION | EXPERTS | {"shared.gate", "shared.up", "shared.down"},
}
"""Weights of linear layers that are divided here, and of which transformers' plan says nothing, by model."""

EMPTY = {"granite-moe", "granite-moe-shared"} if EXPERTS else set()
"""Models of which transformers' plan names no weight: experts are all that Granite's has."""


def divided(family: Family, config: Mapping[str, Any], compared: Compared) -> set[str]:
    """The matrices among what could not be compared that the schema divides, drafts, indexers and vocabularies left out."""
    schema = family.schema(family.describe(config))
    tensors = {t.name: t for kind in schema.kinds.values() for t in kind}
    left = {tensors[n] for n in compared.left if n in tensors}
    return {
        t.name for t in left if t.placement and len(t.shape) == 2 and not t.name.startswith(("mtp.", "linear.conv"))
    }


@pytest.mark.parametrize("name", MODELS)
def test_our_families_are_placed_as_in_transformers(name: str) -> None:
    config = PRESETS[name].config_of(tiny=True)
    family = find_family(config)
    compared = compare_placements(family, config)
    assert divided(family, config, compared) == NOT_IN_A_PLAN.get(name, set())
    assert not any("not known" in reason for reason in compared.left.values())
    assert plans_of(family, config)[0]
    assert bool(compared.tensors) == (name not in EMPTY)


def placed(family: Family, **placements: Placement | None) -> Family:
    """A family with other placements of some tensors; dots in their names are written as underscores twice."""
    named = {name.replace("__", "."): placement for name, placement in placements.items()}
    return with_tensors(family, lambda t: replace(t, placement=named[t.name]) if t.name in named else t)


def with_tensors(family: Family, make: Callable[[Tensor], Tensor]) -> Family:
    def schema(c: Any) -> Any:
        made = family.schema(c)
        return replace(made, kinds={k: tuple(map(make, tensors)) for k, tensors in made.kinds.items()})

    return replace(family, schema=schema)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("smollm2",)])
def test_an_output_projection_that_is_cut_by_rows_is_a_fault_of_every_family(name: str) -> None:
    config = PRESETS[name].config_of(tiny=True)
    with pytest.raises(FamilyFaults, match=r"attn\.o, which consumes it, is not divided along its in dim"):
        check_tables(placed(find_family(config), attn__o=by_rows()), config)


def test_what_the_names_do_not_tell_transformers_does() -> None:
    """Under a name of the author's own, no law knows what the tensor consumes."""

    def renamed(name: str) -> str:
        return name.replace("attn.o", "attn.dense")

    own = with_tensors(SOLAR_OPEN, lambda t: replace(t, name=renamed(t.name)))
    own = replace(
        own,
        spelling={renamed(name): spelled for name, spelled in SOLAR_OPEN.spelling.items()},
        native=tuple(replace(p, parts=tuple(map(renamed, p.parts))) for p in SOLAR_OPEN.native),
    )
    assert "attn.dense" in compare_placements(own, SOLAR_OPEN_CONFIG).tensors
    wrong = placed(own, attn__dense=by_rows())
    check_tables(wrong, SOLAR_OPEN_CONFIG)
    with pytest.raises(FamilyFaults) as caught:
        compare_placements(wrong, SOLAR_OPEN_CONFIG)
    assert caught.value.faults == (
        "schema: attn.dense is divided along its out dim, but in transformers layers.*.self_attn.o_proj is divided along "
        "its in dim (rowwise)",
    )


@pytest.mark.parametrize(
    ("name", "placements", "says"),
    [
        (
            "llama",
            {"mlp__gate": None, "mlp__up": None, "mlp__down": None},
            r"mlp\.gate is held whole .*mlp\.gate_proj is divided along its out dim \(colwise\)",
        ),
        (
            "qwen3-moe",
            {"moe__gate": by_columns(), "moe__up": by_columns(), "moe__down": by_rows()},
            r"moe\.down is divided along its out dim, but in transformers layers\.\*\.mlp\.experts\.down_proj",
        ),
        (
            "llama-4",
            {"moe__gate": by_columns(), "moe__up": by_columns(), "moe__down": by_rows()},
            r"moe\.gate is divided along its in dim, .* divided along its out dim \(packed_rowwise\)",
        ),
        ("qwen3", {"attn__q_norm": by_rows()}, r"attn\.q_norm is divided .* held whole by every rank"),
        ("glm-5.1-fp8", {"attn__kv_a": by_rows()}, r"attn\.kv_a is divided .* \(mla_kv_a_proj\)"),
    ],
)
def test_a_tensor_that_is_divided_in_another_way_is_a_fault(
    name: str, placements: dict[str, Placement | None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "loadmaster.testing.placements.check_tables", lambda family, config: None
    )  # which finds some too
    config = PRESETS[name].config_of(tiny=True)
    with pytest.raises(FamilyFaults, match=says):
        compare_placements(placed(find_family(config), **placements), config)


def test_what_could_not_be_compared_is_said_with_the_reason() -> None:
    config = PRESETS["qwen3-next"].config_of(tiny=True)
    said = str(compare_placements(find_family(config), config)).splitlines()
    assert said[0] == "15 of 28 tensors are placed as in transformers"
    assert said[1].startswith("not compared, its plan does not name it: embed, norm, input_norm")
    assert said[2].endswith("so another cut can also be right: linear.out")


def test_experts_that_transformers_deals_out_have_to_be_experts() -> None:
    config = PRESETS["gpt-oss-bf16"].config_of(tiny=True)
    none = with_tensors(find_family(config), lambda t: replace(t, experts=0) if t.name == "moe.down_bias" else t)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadmaster.testing.placements.check_tables", lambda family, config: None)
        with pytest.raises(FamilyFaults, match=r"moe\.down_bias has no experts, but transformers distributes experts"):
            compare_placements(none, config)
