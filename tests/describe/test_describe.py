"""`loadmaster describe` drafts packages whose plans read the same bytes as those of the tables that loadmaster has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadmaster.checkpoint import Checkpoint, Signature, open_checkpoint
from loadmaster.cli.main import main
from loadmaster.describe import Draft, draft_family, judge, shapes_in_transformers, write_package
from loadmaster.describe.package import load_family
from loadmaster.errors import CheckpointError, ConfigError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.plan.needed import needed
from loadmaster.testing import check_plans, described
from tests.conftest import Tiny

GOLDEN = Path(__file__).parents[1] / "loader" / "golden"


def tensors_of(checkpoint: Checkpoint) -> dict[str, Signature]:
    table = checkpoint.table
    return {n: table.signatures[s] for n, s in zip(table.names, table.signature, strict=True)}


def draft_of(checkpoint: Checkpoint) -> Draft:
    return draft_family(tensors_of(checkpoint), checkpoint.config or {})


@pytest.mark.parametrize("preset", ["qwen3", "glm-5.1-fp8", "mixtral-awq"])
def test_a_draft_reads_what_the_table_reads(preset: str, tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny(preset))
    file = write_package(draft_of(checkpoint), preset, checkpoint.config or {}, tmp_path / "out")
    drafted = described(checkpoint, load_family(file))
    for layout in (ParallelLayout(2), ParallelLayout(1, 2, num_draft_layers=int("glm" in preset))):
        ours, theirs = build_plan(drafted, layout), build_plan(checkpoint, layout)
        for rank in range(ours.num_ranks):
            assert needed(ours, rank) == needed(theirs, rank)


FORMATS = {
    "mlx-mixed": {f"mlx{bits}" for bits in (2, 3, 4, 5, 6, 8)},
    "mlx-mxfp4": {"mlx_mxfp4"},
    "bitsandbytes-nf4": {"bitsandbytes_nf4"},
    "bitsandbytes-fp4": {"bitsandbytes_fp4"},
    "bitsandbytes-int8": {"bitsandbytes_int8"},
}


@pytest.mark.parametrize("case", FORMATS)
def test_so_does_one_of_weights_that_mlx_or_bitsandbytes_stored(case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(GOLDEN / case)
    draft = draft_of(checkpoint)
    assert FORMATS[case] == {f for f in draft.formats if f not in ("BF16", "F32")}
    assert not any("quantised, and the config" in q or "Headers do not" in q for q in draft.questions)
    file = write_package(draft, case, checkpoint.config or {}, tmp_path / "out")
    drafted, layout = described(checkpoint, load_family(file)), ParallelLayout(2, 2)
    ours, theirs = (build_plan(c, layout, target="native-decoded") for c in (drafted, checkpoint))
    for rank in range(ours.num_ranks):
        assert needed(ours, rank) == needed(theirs, rank)
    assert not {"quantization", "quantization_config"} & json.loads((file.parent / "tiny.json").read_text()).keys()


def test_the_shape_of_a_run_of_codes_that_no_name_gives_is_a_question() -> None:
    """128 × 384 codes, two a byte, under a name that no role has; and 96 codes, which are no rows of 64."""
    checkpoint = open_checkpoint(GOLDEN / "bitsandbytes-nf4")
    stored = tensors_of(checkpoint)
    for module, count in (("mlp.riddle", 128 * 384 // 2), ("mlp.enigma", 48)):
        like = "model.layers.0.mlp.up_proj.weight"
        parts = {n: s for n, s in stored.items() if n.startswith(like)}
        stored |= {n.replace("mlp.up_proj", module): s for n, s in parts.items()}
        stored[f"model.layers.0.{module}.weight"] = Signature("U8", (count, 1))
    asked = [q for q in draft_family(stored, checkpoint.config or {}).questions if "Headers do not" in q]
    assert asked == [
        "model.layers.0.mlp.riddle.weight: has it the shape [768, 64]? Headers do not say it",
        "model.layers.0.mlp.enigma.weight: how many rows does it have? Headers do not say it, nor does the config",
    ]


def test_the_package_passes_the_kit(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    config = {**(checkpoint.config or {}), "architectures": ["UnheardOfForCausalLM"]}
    checkpoint = replace(checkpoint, config=config)
    file = write_package(draft_of(checkpoint), "unheard-of", config, tmp_path / "out")
    assert judge(file, config, checkpoint, transformers=False) == ()
    assert {f.name for f in file.parent.iterdir()} == {
        "loadmaster_qwen3.py",
        "test_qwen3.py",
        "pyproject.toml",
        "tiny.json",
    }
    check_plans(load_family(file), config, tmp_path / "kit", layouts=[ParallelLayout(2, 2)])


def test_a_tensor_that_no_table_knows_becomes_a_question(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    tensors = tensors_of(checkpoint) | {"model.layers.0.self_attn.riddle.weight": Signature("BF16", (77, 320))}
    draft = draft_family(tensors, checkpoint.config or {})
    riddle = next(q for q in draft.questions if "riddle" in q)
    assert riddle == (
        "self_attn.riddle.weight [77, 320]: what is it, and how do ranks divide it? The draft gives every rank all of it"
    )
    assert any("77 is no key of the config" in q for q in draft.questions)
    assert any("no key of the config says which layer is of which kind" in q for q in draft.questions)


def test_other_towers_are_left_unread_and_asked_about(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("gemma-3"))
    draft = draft_of(checkpoint)
    assert draft.section == "text_config"
    assert any(q.startswith("1 tensors under vision_tower.") for q in draft.questions)
    file = write_package(draft, "gemma-3", checkpoint.config or {}, tmp_path / "out")
    assert build_plan(described(checkpoint, load_family(file)), ParallelLayout(1, 2)).num_ranks == 2


def test_names_without_layers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no tensor's name has the number of a layer"):
        draft_family({"weight": Signature("BF16", (2, 2))}, {"architectures": ["A"]})


def test_names_from_a_file_cannot_become_code(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    evil = '"""); raise SystemExit("run") #\\'
    config = {
        **(checkpoint.config or {}),
        f"layer{evil}": ["a", "b", "b", "b"],
        "linear": 77,
        "class": 77,
        "model_type": f"x{evil}",
    }
    stored = {
        f"model.layers.0.mlp.{evil}": (2,),
        "model.layers.0.class.a.weight": (77, 320),
        "model.layers.0.blocks.a.weight": (77, 320),
        f"{evil}.weight": (3,),
    }
    tensors = tensors_of(checkpoint) | {name: Signature("BF16", shape) for name, shape in stored.items()}
    file = write_package(draft_family(tensors, config), f"x{evil}", config, tmp_path / "out")
    family = load_family(file)
    assert family.architectures == ("Qwen3ForCausalLM",)
    assert len(family.schema(family.describe(config)).layers) == 4


def test_a_known_architecture_is_drafted_only_by_force(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(tiny("qwen3")), str(tmp_path / "out")
    assert main(["describe", model, "--output", out]) == 2
    assert "Qwen3ForCausalLM is known already" in capsys.readouterr().err
    assert not Path(out).exists()
    assert main(["describe", model, "--output", out, "--force", "--no-transformers"]) == 0
    assert "question 1: " in capsys.readouterr().out
    assert main(["describe", model, "--output", out, "--force"]) == 2
    assert "give a folder that does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_class_in_transformers_stands_for_headers(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    config = checkpoint.config or {}
    from_class = draft_family(shapes_in_transformers(config), config)
    from_headers = draft_of(checkpoint)
    assert (from_class.kinds, from_class.top) == (from_headers.kinds, from_headers.top)
    with pytest.raises(ConfigError, match="has no class of the architecture"):
        shapes_in_transformers({"architectures": ["UnheardOfForCausalLM"]})
