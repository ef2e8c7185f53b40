"""What crosses a cut on which engine, and where none is possible; all cuts are tried by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from loadmaster.architectures.cuts import crossing, legal_starts, obstacle
from loadmaster.architectures.schema import Carried, Schema, Tensor, joined
from loadmaster.architectures.target import Target
from loadmaster.errors import LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan.stages import divide_layers

NATIVE = Target("native", ())
VLLM = Target("vllm-0.32", (), sends=("hidden_states", "residual"))
SCHEMA = Schema((Tensor("embed", (16, 8)),), {}, ("plain",) * 4)


def test_no_cut_separates_a_layer_from_its_source_and_all_others_are_possible() -> None:
    for sources in product(*(range(layer + 1) for layer in range(5))):
        separated = [any(source < cut <= reader for reader, source in enumerate(sources)) for cut in range(5)]
        reasons = joined(sources, "the KV cache")
        assert [bool(why) for why in reasons] == separated
        for cut, why in enumerate(reasons):
            if why:
                reader, source = int(why.split()[1]), int(why.split()[-1])
                assert sources[reader] == source < cut <= reader


def test_a_layer_of_a_group_begins_no_stage_on_any_engine() -> None:
    schema = replace(SCHEMA, joined=joined((0, 1, 1, 3), "the KV cache"))
    assert [legal_starts(schema, target) for target in (NATIVE, VLLM)] == [(1, 3), (1, 3)]
    assert obstacle(schema, NATIVE, 2) == "layer 2 reads the KV cache of layer 1"
    assert [bool(obstacle(schema, NATIVE, layer)) for layer in range(5)] == [True, False, True, False, True]


def test_what_an_engine_does_not_pass_on_is_an_obstacle_there_alone() -> None:
    selection = Carried("topk_indices", (4,), "I64", source=1)
    schema = replace(SCHEMA, carries=((), (), (selection,), ()))
    assert (legal_starts(schema, NATIVE), legal_starts(schema, VLLM)) == ((1, 2, 3), (1, 3))
    assert crossing(schema, NATIVE, 2) == (Carried("hidden_states", (8,)), selection)
    assert sum(f.token_bytes("BF16") for f in crossing(schema, NATIVE, 2)) == 8 * 2 + 4 * 8
    assert legal_starts(schema, replace(VLLM, sends=("hidden_states", "topk_indices"))) == (1, 2, 3)


def test_vllm_sends_the_residual_apart_and_streams_replace_the_hidden_states() -> None:
    assert crossing(SCHEMA, VLLM, 1) == (Carried("hidden_states", (8,)), Carried("residual", (8,)))
    streams = (Carried("hidden_states", (4, 8)), Carried("pre_mix", (4,), "F32"))
    schema = replace(SCHEMA, carries=((), *(streams,) * 3))
    assert crossing(schema, NATIVE, 2) == streams
    assert crossing(schema, replace(VLLM, sends=("hidden_states", "pre_mix")), 2) == streams
    assert crossing(schema, NATIVE, 0) == crossing(schema, VLLM, 0) == ()


def test_groups_of_layers_that_share_a_source_begin_stages_at_their_sources_alone() -> None:
    """DeepSeek-V4.1: layers 0 and 1 share nothing, the others read what layer 2, 8, 14 or 20 compressed."""
    sources = [layer if layer < 2 else max(s for s in (2, 8, 14, 20) if s <= layer) for layer in range(40)]
    schema = replace(SCHEMA, layers=("plain",) * 40, joined=joined(sources, "the compressed KV cache"))
    assert legal_starts(schema, NATIVE) == (1, 2, 8, 14, 20)
    layout = divide_layers(schema, NATIVE, ParallelLayout(4)).layout
    assert layout.layer_partition == (8, 6, 6, 20)
    with pytest.raises(LayoutError, match="7 pipeline stages, and the layers can be divided over 6 at most"):
        divide_layers(schema, NATIVE, ParallelLayout(7))


def test_a_bank_grows_with_the_cut() -> None:
    """Kimi-K3: the residuals of layers 0, 12, 24 … cross beside the running sum."""
    bank = tuple((Carried("residual", (-(-layer // 12), 8)),) if layer else () for layer in range(93))
    schema = replace(SCHEMA, layers=("plain",) * 93, carries=bank)
    shapes = [{f.name: f.shape for f in crossing(schema, VLLM, layer)} for layer in (1, 12, 13, 92)]
    assert [s["hidden_states"] for s in shapes] == [(8,)] * 4
    assert [s["residual"] for s in shapes] == [(1, 8), (1, 8), (2, 8), (8, 8)]
