"""vLLM's cache, on configs small enough to count by hand; and vLLM's own grouping, where it is installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.targets import newest_target
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.sizing.vllm_cache import VllmCacheOptions, vllm_cache
from loadmaster.synth import PRESETS, write_full_size, write_tiny
from tests.conftest import Tiny


def planned(path: Path, layout: ParallelLayout | None = None) -> Plan:
    return build_plan(open_checkpoint(path), layout, target=newest_target("vllm"))


def sliding(path: Path, num_layers: int, first: int) -> Plan:
    """Return a Qwen-2 whose layers from ``first`` on have a window of 32 tokens."""
    windows = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": first}
    write_tiny(PRESETS["qwen2"], path, overrides={"num_hidden_layers": num_layers, **windows})
    return planned(path)


def few_layers(preset: str, path: Path, layout: ParallelLayout | None = None) -> Plan:
    """Return a model of full width with four layers and eight experts."""
    overrides = {"num_hidden_layers": 4, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
    write_full_size(PRESETS[preset], path, overrides=overrides)
    return planned(path, layout)


def test_keys_and_values_are_stored_in_the_dtype_asked_for(tiny: Tiny) -> None:
    plan = planned(tiny("qwen3-moe"))
    plain = vllm_cache(plan)
    assert plain.block_size == 16
    for name in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        quantised = vllm_cache(plan, VllmCacheOptions(name))
        assert quantised.layers[0].token_bytes * 2 == plain.layers[0].token_bytes


def test_a_latent_is_stored_with_its_rotary_key_and_an_indexers_key_in_fp8_with_its_scale(tmp_path: Path) -> None:
    plan = few_layers("glm-5.1-fp8", tmp_path / "glm")
    assert [row.num_bytes for row in vllm_cache(plan).layers[0].rows] == [(512 + 64) * 2, 128 + 4]
    assert [row.num_bytes for row in vllm_cache(plan, VllmCacheOptions("fp8")).layers[0].rows] == [656, 132]


def test_a_latent_without_an_indexer_is_one_byte_an_element_in_fp8(tmp_path: Path) -> None:
    plan = few_layers("deepseek-v3", tmp_path / "deepseek", ParallelLayout(num_draft_layers=1))
    cache = vllm_cache(plan, VllmCacheOptions("fp8"))
    assert {layer.token_bytes for layer in cache.layers} == {512 + 64}
    assert (len(cache.layers), cache.block_size) == (len(plan.schema.layers) + 1, 64)
    assert vllm_cache(plan, VllmCacheOptions("fp8_ds_mla")).layers[0].token_bytes == 656


@pytest.mark.parametrize("name", ["nvfp4", "int8_per_token_head", "turboquant_4bit_nc"])
def test_formats_that_are_not_covered_are_refused_by_name(name: str, tiny: Tiny) -> None:
    with pytest.raises(UnsupportedError, match=name) as caught:
        vllm_cache(planned(tiny("qwen3")), VllmCacheOptions(name))
    assert "fp8_e4m3" in str(caught.value.hint)


def test_fp8_ds_mla_is_refused_for_attention_with_heads(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedError, match="latent attention"):
        vllm_cache(planned(tiny("qwen3")), VllmCacheOptions("fp8_ds_mla"))


def test_layers_with_windows_are_dealt_out_to_groups_of_the_rarest_kind(tmp_path: Path) -> None:
    cache = vllm_cache(sliding(tmp_path / "tiny", 6, 2), VllmCacheOptions(max_num_batched_tokens=64))
    assert [group.layers for group in cache.groups] == [(0, 1), (2, 4), (3, 5)]
    # two batches of 64 tokens in flight and 31 tokens before them: 10 blocks of 16 tokens, and one more
    assert cache.request_blocks(1600) == 100 + 2 * 11
    assert cache.request_blocks(16) == 1 + 2 * 2
    layer = cache.layers[0].token_bytes
    assert cache.block_bytes(0, 6, is_last=True) == 2 * layer * 16
    assert cache.block_bytes(0, 3, is_last=False) == 2 * layer * 16  # the group (0, 1) is whole there
    assert cache.block_bytes(3, 6, is_last=True) == 2 * layer * 16  # so is (3, 5)


def test_nearly_as_many_layers_of_each_kind_are_one_group_each(tmp_path: Path) -> None:
    cache = vllm_cache(sliding(tmp_path / "tiny", 7, 4))
    assert [group.layers for group in cache.groups] == [(0, 1, 2, 3), (4, 5, 6)]


def test_a_window_in_every_layer_is_one_group(tmp_path: Path) -> None:
    cache = vllm_cache(sliding(tmp_path / "tiny", 4, 0), VllmCacheOptions(max_num_batched_tokens=32))
    assert [group.layers for group in cache.groups] == [(0, 1, 2, 3)]
    assert cache.longest(100, 10**6) == 10**6  # however long, a request takes 7 blocks
    assert cache.num_tokens(71, 1000) == 10 * 1000  # one block is reserved


def their_grouping() -> tuple[tuple[Any, ...], Any]:
    """Return the module of vLLM that groups layers, and what its functions take before their other arguments."""
    import vllm

    if vllm.__version__.startswith("0.32."):
        return (), import_module("vllm.v1.core.kv_cache_utils")
    planning = import_module("vllm.v1.core.kv_cache_planning")
    return (planning.DefaultKVCacheConfigBuilder(),), planning


@pytest.mark.vllm
@pytest.mark.parametrize(("num_layers", "first"), [(6, 2), (5, 3), (7, 1), (4, 0)])
def test_groups_and_bytes_are_those_of_vllm(num_layers: int, first: int, tmp_path: Path) -> None:
    from types import SimpleNamespace

    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
    from vllm.v1.kv_cache_layout import KVCacheLayout

    cache = vllm_cache(sliding(tmp_path / "tiny", num_layers, first), VllmCacheOptions(max_num_batched_tokens=64))
    of: Any = {"block_size": 16, "num_kv_heads": cache.layers[0].rows[0].num_heads, "dtype": torch.bfloat16}
    of["head_size"] = cache.layers[0].rows[0].width
    specs = {
        str(n): FullAttentionSpec(**of)
        if layer.window is None
        else SlidingWindowSpec(**of, sliding_window=layer.window)
        for n, layer in enumerate(cache.layers)
    }
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        attention_config=SimpleNamespace(hisparse_config=None),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
        ),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        model_config=SimpleNamespace(max_model_len=1600),
        speculative_config=None,
        max_in_flight_tokens=128,
    )
    builder, theirs = their_grouping()
    groups = theirs.get_kv_cache_groups(config, specs)
    assert [tuple(map(int, g.layer_names)) for g in groups] == [g.layers for g in cache.groups]
    needed = theirs._max_memory_usage_bytes_from_groups(*builder, config, groups)
    assert needed == cache.request_blocks(1600) * cache.block_bytes(0, num_layers, is_last=True)
