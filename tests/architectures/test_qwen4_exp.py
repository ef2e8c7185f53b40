"""Qwen4Exp: transformers' names, shapes and parameter count; a table in slices, in each of its formats; cuts and defects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, InputError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.plan.explanation import explain_param
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.synth.presets import Preset
from loadmaster.synth.quantised import QUANTISED
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import Change, damaged_copy
from tests.architectures.test_qwen3_5 import vision

BODY = "model.language_model.layers."
TABLE = f"{BODY}1.ple.ple_embedding.ngram_embedding."
FORMATS = ("bf16", "fp8", "nvfp4")
LINEAR = "linear_attention"
RELEASE, TINY = (PRESETS["qwen3.8-flash-next"].config_of(tiny=tiny) for tiny in (False, True))
TEXT = TINY["text_config"]


def config_of(table: str = "bf16", **text: Any) -> dict[str, Any]:
    """A tiny model. The hash heads of its table have 17, 19, 23 and 29 rows, and 8 more fill up 96: 8 slices of 12."""
    config = {**RELEASE, "text_config": {**TEXT, **text}}
    if table == "fp8":
        return config | {"quantization_config": QUANTISED["fp8"](32)}
    if table == "nvfp4":
        config["text_config"]["ple_embedding_dtype"] = "nvfp4"
        return config | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    return config


def one_spelling(config: dict[str, Any]) -> Any:
    family = find_family(config)
    return replace(family, variants=(), drafts=family.drafts[:1])


@pytest.mark.parametrize("config", [pytest.param(RELEASE, marks=pytest.mark.slow), None], ids=["release", "tiny"])
def test_names_and_shapes_are_those_of_transformers(config: dict[str, Any] | None) -> None:
    config = config or {**config_of(ple_layer_ids=[2, 3]), "vision_config": {"depth": 1}}
    compare_with_transformers(find_family(config), config)


def test_the_release_has_as_many_parameters_as_transformers_makes_of_its_config() -> None:
    entries = inventory(Preset("flash-next", RELEASE, {}, 40), RELEASE)
    num_constants = 3 + 16 + 16
    num_elements = sum(int(np.prod(e.signature.shape)) for e in entries if not e.name.startswith("mtp."))
    assert num_elements + num_constants + sum(vision(3584)) == 177_397_550_227


def test_the_table_of_the_release_has_sixteen_primes_of_rows_in_512_slices() -> None:
    entries = inventory(Preset("flash-next", RELEASE, {}, 40), RELEASE)
    slices = [e for e in entries if ".ngram_embedding." in e.name]
    assert [e.name for e in slices] == [f"{TABLE}shard_{number}.weight" for number in range(512)]
    assert {e.signature.shape for e in slices} == {(625_003, 160)}
    assert 512 * 625_003 == 320_001_446 + 90  # the hash heads' rows, and what divides them by 128


@pytest.mark.parametrize("changes", [{}, {"ple_layer_ids": [2, 4]}, {"ple_layer_ids": []}, {"indexer_n_heads": None}])
def test_the_tables_agree(changes: dict[str, Any]) -> None:
    config = config_of(**changes)
    check_tables(find_family(config), config)


@pytest.mark.parametrize("table", FORMATS)
def test_every_rank_gets_its_bytes(table: str, tmp_path: Path) -> None:
    config = config_of(table)
    layouts = [ParallelLayout(2, 2, num_draft_layers=1)]
    if table == "bf16":
        across = ParallelLayout(1, 2, data_parallel_size=2, tables_across_dp=True)
        layouts += [across, ParallelLayout(1, 4, enable_expert_parallel=True)]
    assert check_loading(one_spelling(config), config, tmp_path / "tiny", layouts=layouts) > 200


@pytest.mark.slow
def test_every_rank_gets_its_bytes_in_every_spelling(tmp_path: Path) -> None:
    config = config_of(ple_layer_ids=[2, 3])
    assert check_loading(find_family(config), config, tmp_path / "tiny") > 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("qwen4-exp")
    for table in FORMATS:
        config = config_of(table)
        write_checkpoint(find_family(config), config, made / table)
    return made


def found(path: Path, layout: ParallelLayout | None = None) -> list[tuple[str, str | None]]:
    findings = prove(build_plan(open_checkpoint(path), layout)).findings
    assert "family-unchecked" in {f.code for f in findings}
    return [(f.code, f.tensor) for f in findings if f.code != "family-unchecked"]


@pytest.mark.parametrize(("name", "row_bytes"), [("bf16", 32), ("fp8", 16), ("nvfp4", 8 + 1)])
def test_the_table_is_in_the_memory_of_the_host_of_its_stage(name: str, row_bytes: int, folder: Path) -> None:
    """Each of two ranks holds 48 of 96 rows: four slices, and one factor where there is one for all of them."""
    proof = prove(build_plan(open_checkpoint(folder / name), ParallelLayout(2, 2)))
    factor = 0 if name == "bf16" else 4
    assert proof.proven and [r.host_bytes for r in proof.ranks] == [48 * row_bytes + factor] * 2 + [0, 0]


def test_a_table_is_decoded_slice_by_slice(folder: Path) -> None:
    """The second of two ranks has rows 48 to 95, slices 4 to 7. Each is decoded with the factor of all."""
    plan = build_plan(open_checkpoint(folder / "fp8"), ParallelLayout(1, 2), target="native-decoded")
    loaded = load_rank(prove(plan).require_proven(), 1).tensors["layers.1.ple.ple_embedding.ngram_embedding.weight"]
    stored = DamagedCheckpoint(folder / "fp8")
    values = torch.cat([stored.tensor(f"{TABLE}shard_{number}.weight").float() for number in range(4, 8)])
    assert torch.equal(loaded, (values * stored.tensor(f"{TABLE}weight_scale")).bfloat16())
    moves = [g for g in plan.rank(1).groups if any(v.leaf.slice is not None for v in g.views)]
    assert [[v.leaf.slice for v in g.views] for g in moves] == [[4, None], [5, None], [6, None], [7, None]]


def test_many_slices_are_explained_in_one_line(folder: Path) -> None:
    plan = build_plan(open_checkpoint(folder / "fp8"))
    explained = explain_param(plan, "layers.1.ple.ple_embedding.ngram_embedding.weight")
    assert explained is not None
    names = [f"{TABLE}shard_{number}.weight" for number in (0, 1, 2, 7)]
    assert explained.expression == f"Concat({', '.join(names[:3])}, …, {names[3]}, 8 in all)"


def test_streams_cross_every_cut_and_the_mtp_layer_is_waived(folder: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(folder / "bf16")))
    assert [(c.refused, c.crosses) for c in listed[1:4]] == [(None, (("hidden_states", 4 * 64 * 2),))] * 3
    proof = prove(build_plan(open_checkpoint(folder / "bf16"), ParallelLayout(4)))
    assert proof.proven and [w.reason for w in proof.waivers] == ["mtp not enabled"]


def test_the_constants_of_the_hash_are_parameters_where_they_are_stored(folder: Path, tmp_path: Path) -> None:
    damaged = DamagedCheckpoint(Path(copytree(folder / "bf16", tmp_path / "copy")))
    prefix, sizes = f"{BODY}1.ple.ple_embedding.", {"layer_multipliers": 3, "ngram_heads_offsets": 4}
    sizes["ngram_heads_vocab_sizes"] = 4
    constants = {prefix + name: torch.arange(size) for name, size in sizes.items()}
    damaged.each(r"1\.ple\.conv1d\.weight$", lambda name, tensor: {name: tensor, **constants})
    plan = build_plan(open_checkpoint(damaged.path))
    assert prove(plan).proven
    assert {s.name: s.shape for s in plan.rank(0).specs if s.dtype == "I64"} == {
        f"layers.1.ple.ple_embedding.{name}": (size,) for name, size in sizes.items()
    }
    damaged.drop(r"ngram_heads_offsets$")
    assert found(damaged.path) == [("tensor-missing", prefix + "ngram_heads_offsets")]


@pytest.mark.parametrize(
    ("name", "pattern", "change", "code", "tensor"),
    [
        ("bf16", r"\.shard_3\.", None, "tensor-missing", f"{TABLE}shard_3.weight"),
        ("bf16", r"\.shard_7\.", lambda t: t[:-1], "shape-mismatch", f"{TABLE}shard_7.weight"),
        ("bf16", r"\.shard_2\.", lambda t: t.float(), "dtype-inadmissible", f"{TABLE}shard_2.weight"),
        ("fp8", r"ngram_embedding\.weight_scale$", None, "scale-missing", f"{TABLE}weight_scale"),
        ("fp8", r"ngram_embedding\.weight_scale$", lambda t: t.repeat(2), "shape-mismatch", f"{TABLE}weight_scale"),
        ("fp8", r"\.shard_5\.", lambda t: t.bfloat16(), "scale-stray", f"{TABLE}weight_scale"),
        ("nvfp4", r"\.shard_5\.weight_scale$", None, "scale-missing", f"{TABLE}shard_5.weight_scale"),
        ("nvfp4", r"ngram_embedding\.weight_scale_2$", None, "scale-missing", f"{TABLE}weight_scale_2"),
        (
            "bf16",
            rf"{BODY}0\.attn_hyper_connection\.block_inject",
            None,
            "tensor-missing",
            f"{BODY}0.attn_hyper_connection.block_inject_weight.weight",
        ),
        (
            "bf16",
            r"^model\.language_model\.hyper_connection_mixer\.hc_norm",
            lambda t: t[:64],
            "shape-mismatch",
            "model.language_model.hyper_connection_mixer.hc_norm.weight",
        ),
        (
            "bf16",
            rf"{BODY}3\.self_attn\.indexer\.index_qk_proj",
            lambda t: t[:-16],
            "shape-mismatch",
            f"{BODY}3.self_attn.indexer.index_qk_proj.weight",
        ),
        ("bf16", r"^mtp\.fc_hidden\.weight", None, "tensor-missing", "mtp.fc_hidden.weight"),
    ],
)
def test_a_defect_is_one_finding(
    name: str, pattern: str, change: Change | None, code: str, tensor: str, folder: Path, tmp_path: Path
) -> None:
    path = damaged_copy(folder / name, tmp_path / "copy", pattern, change)
    assert found(path, ParallelLayout(2, num_draft_layers=1)) == [(code, tensor)]


def test_a_table_in_other_slices_than_the_config_says_is_one_finding_and_what_is_left_over(
    folder: Path, tmp_path: Path
) -> None:
    damaged = DamagedCheckpoint(Path(copytree(folder / "bf16", tmp_path / "copy")))
    damaged.config(text_config={**TEXT, "split_ngram_parts": 4})
    findings = prove(build_plan(open_checkpoint(damaged.path))).findings
    first = next(f for f in findings if f.code == "shape-mismatch")
    assert first.tensor == f"{TABLE}shard_0.weight"
    assert first.message == "expected [24, 16] from the config, found [12, 16] (and 3 more slices alike)"
    assert {f.code for f in findings} == {"family-unchecked", "shape-mismatch", "tensor-unexpected"}


def test_an_fp8_table_needs_a_config_that_says_so(folder: Path, tmp_path: Path) -> None:
    damaged = DamagedCheckpoint(Path(copytree(folder / "bf16", tmp_path / "copy")))
    for number in range(8):
        damaged.change(rf"\.shard_{number}\.", lambda t: t.to(torch.float8_e4m3fn))
    damaged.each(r"1\.ple\.conv1d\.weight$", lambda name, t: {name: t, f"{TABLE}weight_scale": torch.ones(())})
    assert ("format-contradiction", f"{TABLE}shard_0.weight") in found(damaged.path)
    damaged.config(text_config={**TEXT, "ple_embedding_dtype": "float8_e4m3fn"})
    assert found(damaged.path) == []


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"split_ngram_parts": 7}, UnsupportedError, "a table of n-grams has 96, which 7 slices"),
        ({"ple_embed_dim": 66}, UnsupportedError, "ple_embed_dim is 66, which 4 hash heads do not divide"),
        ({"ple_layer_ids": [0]}, ConfigError, r"ple_layer_ids must be numbers from 1 to 4, found \[0\]"),
        ({"ple_embedding_dtype": "int4"}, UnsupportedError, "ple_embedding_dtype 'int4' is not supported"),
        ({"layer_types": [LINEAR, "sliding"] * 2}, ConfigError, "layer_types must give linear_attention or"),
        ({"mtp_num_hidden_layers": 2}, UnsupportedError, "mtp_num_hidden_layers other than 0 and 1"),
    ],
)
def test_what_the_tables_cannot_say_is_refused(changes: dict[str, Any], error: type[InputError], says: str) -> None:
    config = config_of(**changes)
    family = find_family(config)
    with pytest.raises(error, match=says):
        family.schema(family.describe(config))
