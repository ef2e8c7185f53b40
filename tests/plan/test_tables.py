"""Tables of which each token reads a few rows: in the memory of the host, divided between hash heads, and counted apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.llama import FAMILY as LLAMA
from loadmaster.architectures.ngram import head_rows
from loadmaster.architectures.schema import Memory, Param, Placement, Schema, Tensor
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.formats import fp8_block
from loadmaster.loader import load_rank, load_ranks
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.report.memory import memory_table
from loadmaster.report.ranks import print_ranks
from loadmaster.sizing import MemoryOptions
from loadmaster.sizing.memory import measure_proof
from loadmaster.sizing.weights import WeightSizes
from loadmaster.testing import check_loading, check_tables, write_checkpoint
from tests.loader.cuda.host import pretend

HEADS = (5, 7, 11, 13)
"""Rows of the hash heads: 36 in all. Two ranks hold 12 and 24 of them."""
CONFIG: dict[str, Any] = {
    "architectures": ["TablesForCausalLM"],
    "model_type": "tables",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]},
}
WEIGHTS, SCALES = 36 * 64, 36 * 2 * 4
"""Bytes of the table: FP8 values, and an F32 scale for each row and each 32 columns."""


def schema(c: Config, usually: Memory = "host", heads: tuple[int, ...] = HEADS) -> Schema:
    """A Llama whose layer 1 has a table."""
    table = Tensor(
        "table",
        (sum(heads), 64),
        Placement(0, sections=heads),
        quantised=True,
        table=usually,
        formats=(fp8_block((1, 32)),),
    )
    plain = LLAMA.schema(Config({**c.values, "architectures": ["LlamaForCausalLM"]}))
    kinds = {"plain": plain.kinds[plain.layers[0]]}
    kinds["table"] = (*kinds["plain"], table)
    return replace(plain, kinds=kinds, layers=("plain", "table", "plain", "plain"))


FAMILY = replace(
    LLAMA,
    name="tables",
    architectures=("TablesForCausalLM",),
    schema=schema,
    variants=(),
    spelling={**LLAMA.spelling, "table": blocks.LAYER + "table.weight"},
    native=(*LLAMA.native, Param("{block}.table.weight", ("table",))),
    runs=False,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tables")
    return path


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Any:
    return write_checkpoint(FAMILY, CONFIG, folder / "model")


def planned(checkpoint: Any, layout: ParallelLayout) -> Plan:
    return build_plan(checkpoint, layout)


def test_the_rows_of_hash_heads_are_consecutive_primes() -> None:
    assert head_rows(1, 1, 4) == ((2, 3, 5, 7),)
    assert head_rows(90, 3, 2) == ((97, 101), (103, 107), (109, 113))
    assert sum(map(sum, head_rows(16_000_000, 2, 24))) == 384_006_168 + 384_016_682
    with pytest.raises(ConfigError, match="4,104 hash heads of n-grams in all tables, and the limit is 4,096"):
        head_rows(10, 171, 24)


def test_every_rank_gets_whole_hash_heads(folder: Path) -> None:
    check_tables(FAMILY, CONFIG)
    layouts = [
        ParallelLayout(2, 2),
        ParallelLayout(1, 4),
        ParallelLayout(1, 2, data_parallel_size=2, tables_across_dp=True),
        ParallelLayout(1, 2, tables="device"),
    ]
    assert check_loading(FAMILY, CONFIG, folder / "loaded", layouts=layouts) > 50


def test_bytes_on_the_host_are_counted_apart(checkpoint: Any) -> None:
    host = {
        (1, 1): [WEIGHTS + SCALES],
        (1, 2): [12 * (64 + 8), 24 * (64 + 8)],
        (2, 1): [WEIGHTS + SCALES, 0],
    }
    for (stages, ranks), expected in host.items():
        proof = prove(planned(checkpoint, ParallelLayout(stages, ranks)))
        assert proof.findings == () and [r.host_bytes for r in proof.ranks] == expected
        on_devices = prove(planned(checkpoint, ParallelLayout(stages, ranks, tables="device")))
        assert [r.host_bytes for r in on_devices.ranks] == [0] * stages * ranks
        assert [
            r.resident_bytes - o.resident_bytes for r, o in zip(on_devices.ranks, proof.ranks, strict=True)
        ] == expected


def test_replicas_hold_a_table_each_or_a_stage_holds_it_once(checkpoint: Any) -> None:
    layout = ParallelLayout(1, 2, data_parallel_size=2)
    each = prove(planned(checkpoint, layout))
    once = prove(planned(checkpoint, replace(layout, tables_across_dp=True)))
    assert sum(r.host_bytes for r in each.ranks) == 2 * (WEIGHTS + SCALES)
    assert [r.host_bytes for r in once.ranks] == [rows * (64 + 8) for rows in HEADS]
    assert each.proven and once.proven


def test_an_engine_that_reads_no_tables_on_the_host_has_them_on_its_devices(checkpoint: Any) -> None:
    plan = planned(checkpoint, ParallelLayout())
    assert all(
        t.table is None
        for kind in replace(plan.target, has_tables=False).adapted(plan.schema).kinds.values()
        for t in kind
    )
    assert {t.table for t in plan.schema.kinds["table"]} == {None, "host"}


def test_a_layout_that_would_split_a_hash_head_is_refused(checkpoint: Any) -> None:
    with pytest.raises(
        LayoutError, match=r"table \(.*\): 4 unit\(s\) of 1 \(sections of rows\) do not divide over 8"
    ) as error:
        planned(checkpoint, ParallelLayout(1, 4, data_parallel_size=2, tables_across_dp=True))
    assert "valid tensor-parallel sizes for this model with this data-parallel size: 1, 2" in str(error.value.hint)


def test_a_table_counts_for_the_host_in_capacity_memory_and_sizes(checkpoint: Any) -> None:
    plan = planned(checkpoint, ParallelLayout())
    resident = plan.rank(0).resident_bytes
    assert prove(plan, capacity_bytes=resident).findings == ()
    (over,) = prove(planned(checkpoint, ParallelLayout(tables="device")), capacity_bytes=resident).findings
    assert over.code == "memory-capacity"
    memory = measure_proof(prove(plan), "native", MemoryOptions())
    assert (memory.ranks[0].parameters_bytes, memory.ranks[0].host_tables_bytes) == (resident, WEIGHTS + SCALES)
    columns, _ = memory_table(memory)
    assert columns[-1] == "host tables"
    sizes = WeightSizes(plan).at(ParallelLayout())
    assert sizes.stage(0, 4) == resident
    assert sizes.host is not None and sizes.host.layers == (0, WEIGHTS + SCALES, 0, 0)
    assert WeightSizes(plan).at(ParallelLayout(tables="device")).host is None


def test_the_ranks_table_has_a_column_for_the_host_only_where_something_is_there(checkpoint: Any) -> None:
    def printed(layout: ParallelLayout) -> str:
        console = Console(width=200, record=True, quiet=False)
        with console.capture() as captured:
            print_ranks(console, prove(planned(checkpoint, layout)).ranks, layout)
        return captured.get()

    assert " host " in printed(ParallelLayout()).splitlines()[0]
    assert " host " not in printed(ParallelLayout(tables="device"))


def test_the_layouts_json_has_the_place_of_tables_only_if_it_is_asked_for() -> None:
    layout = ParallelLayout(tables="host", tables_across_dp=True)
    assert ParallelLayout.from_json(layout.as_json()) == layout
    assert "tables" not in ParallelLayout().as_json()
    assert ParallelLayout.from_json(ParallelLayout().as_json()) == ParallelLayout()
    with pytest.raises(LayoutError, match="tables is 'disk', a str, expected 'host', 'device' or None"):
        ParallelLayout(tables="disk")  # type: ignore[arg-type]


def test_a_rank_on_the_host_has_all_of_its_parameters(checkpoint: Any) -> None:
    proof = prove(planned(checkpoint, ParallelLayout()))
    loaded = load_rank(proof.require_proven(), 0)
    assert loaded.report.resident_bytes == proof.ranks[0].resident_bytes + proof.ranks[0].host_bytes
    rank = proof.plan.rank(0)
    parts = [rank.in_memory(host=host) for host in (True, False)]
    assert [p.num_bytes for p in parts] == [rank.host_bytes, rank.resident_bytes]
    assert sorted(s.name for p in parts for s in p.specs) == sorted(s.name for s in rank.specs)
    assert sum(p.needed_bytes for p in parts) == rank.needed_bytes


def test_devices_and_the_host_are_loaded_together_and_hold_what_the_host_alone_holds(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    plan = prove(planned(checkpoint, ParallelLayout(1, 2))).require_proven()
    done: list[int] = []
    both = load_ranks(plan, {0: "cuda:0", 1: "cuda:1"}, on_progress=done.append)
    for rank, loaded in both.items():
        alone = load_rank(plan, rank)
        assert list(loaded.tensors) == [s.name for s in plan.rank(rank).specs]
        assert loaded.digest() == alone.digest()
        assert loaded.report.needed_bytes == alone.report.needed_bytes
        assert loaded.report.phases["tables"] > 0
    assert sum(done) == sum(loaded.report.needed_bytes for loaded in both.values())
