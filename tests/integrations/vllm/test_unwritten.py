"""The pattern, and what is told by it: on tensors alone."""

from __future__ import annotations

import pytest
import torch

from loadmaster.integrations.vllm.unwritten import Watch, glance, patterned, prepare, unwritten, write_pattern


def never(name: str) -> bool:
    return False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_each_element_of_a_plain_format_is_told_by_itself(dtype: torch.dtype) -> None:
    weight = torch.empty(5, 7, dtype=dtype)
    write_pattern(weight)
    assert weight.isnan().all()
    assert unwritten(weight).all()
    weight[:] = 1
    weight[2, 3] = float("nan")  # another NaN than the pattern
    assert not unwritten(weight).any()
    write_pattern(weight[4, 6])
    assert unwritten(weight).nonzero().flatten().tolist() == [34 * dtype.itemsize + i for i in range(dtype.itemsize)]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.int32])
def test_of_bytes_and_integers_64_in_a_row_are_told(dtype: torch.dtype) -> None:
    rows = torch.zeros(4, 64 // dtype.itemsize, dtype=dtype)
    write_pattern(rows[2])
    assert unwritten(rows).nonzero().flatten().tolist() == list(range(128, 192))
    write_pattern(rows[3])
    rows.view(torch.uint8)[3, 0] = 0
    assert int(unwritten(rows).sum()) == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32])
def test_a_glance_misses_no_run_and_says_nothing_about_tensors_with_a_rest(dtype: torch.dtype) -> None:
    tensors = {name: torch.zeros(128, dtype=dtype) for name in ("all", "last run", "end", "none")}
    tensors["a run and a rest"] = torch.zeros(64 // dtype.itemsize + 1, dtype=dtype)
    run = 64 // dtype.itemsize
    for name, part in (("all", slice(None)), ("last run", slice(-run, None)), ("end", slice(-1, None))):
        write_pattern(tensors[name][part])
    expected = {name: bool(unwritten(tensors[name]).any()) for name in ("all", "last run", "end", "none")}
    of_rest = {} if dtype.itemsize == 1 or dtype == torch.int32 else {"a run and a rest": False}
    assert glance(tensors) == expected | of_rest
    assert expected["last run"] and not expected["none"]
    assert not glance({"last run": tensors["last run"]}, first_bytes=64)["last run"]


def test_a_rest_goes_by_the_run_before_it_and_a_few_bytes_alone_tell_nothing() -> None:
    for size, told in ((3, 0), (4, 4), (65, 65), (130, 130)):
        scales = torch.zeros(size, dtype=torch.uint8)
        write_pattern(scales)
        assert int(unwritten(scales).sum()) == told
        scales[0] = 1
        assert int(unwritten(scales).sum()) == (66 if size == 130 else 0)


def test_a_transposed_parameter_is_written_and_read_in_its_own_order() -> None:
    weight = torch.zeros(4, 3, dtype=torch.bfloat16).t()
    write_pattern(weight)
    weight[1] = 2
    assert unwritten(weight).view(3, 8).all(1).tolist() == [True, False, True]


def test_memory_that_is_handed_out_uninitialised_has_the_pattern_and_other_memory_has_not() -> None:
    with patterned():
        module = torch.nn.ParameterDict(
            {"empty": torch.empty(3, 3), "like": torch.empty_like(torch.ones(2)), "ones": torch.ones(4)}
        )
        assert torch.empty(2, device="meta").is_meta
    assert unwritten(module["empty"]).all()
    assert unwritten(module["like"]).all()
    assert not unwritten(module["ones"]).any()


def test_what_no_one_wrote_is_named_with_its_slices() -> None:
    with patterned():
        params = {"experts.w2_weight": torch.empty(4, 2, 8, dtype=torch.bfloat16), "o_proj.weight": torch.empty(2, 2)}
    watch = Watch(params, never)
    params["experts.w2_weight"][[0, 2, 3]] = 1
    (experts, o_proj) = watch.gaps()
    assert (experts.param, experts.missing_bytes, experts.num_bytes, experts.slices) == (
        "experts.w2_weight",
        32,
        128,
        (1,),
    )
    assert (o_proj.param, o_proj.missing_bytes, o_proj.shape, o_proj.slices) == ("o_proj.weight", 16, (2, 2), ())
    params["experts.w2_weight"][1] = 1
    params["o_proj.weight"][:] = 0
    assert watch.gaps() == []


def test_a_run_of_bytes_counts_for_each_slice_that_it_reaches_into() -> None:
    with patterned():
        params = {
            "codes": torch.empty(6, 2, 24, dtype=torch.uint8),
            "experts": torch.empty(3, 2, 2**19, dtype=torch.uint8),
        }
    watch = Watch(params, never)
    params["codes"][[0, 1, 5]] = 1  # slices of 48 bytes: the third run of 64 is the last
    params["experts"][[0, 2]] = 1  # slices of 2**20 bytes, all of the second
    (codes, experts) = watch.gaps()
    assert (codes.missing_bytes, codes.slices) == (64, (2, 3))
    assert (experts.missing_bytes, experts.slices) == (2**20, (1,))


def test_a_small_default_is_given_back_and_a_weight_that_was_initialised_is_none() -> None:
    smallest = torch.finfo(torch.float32).min
    params = {
        "attn.k_scale": torch.tensor(-1.0),
        "experts.w13_input_scale": torch.ones(3),
        "norm.weight": torch.ones(4, dtype=torch.bfloat16),
        "q_proj.weight_scale": torch.full((2,), smallest),
        "q_proj.input_scale": torch.full((2,), smallest),  # says that it must be loaded
    }
    watch = Watch(params, never)
    params["experts.w13_input_scale"][1] = 0.5
    assert [g.param for g in watch.gaps()] == ["norm.weight", "q_proj.weight_scale", "q_proj.input_scale"]
    assert params["attn.k_scale"] == -1
    assert params["experts.w13_input_scale"].tolist() == [1, 0.5, 1]


def test_what_may_stay_gets_its_default_back_whatever_it_is_called() -> None:
    params = {"attn.prob_scale_weight": torch.tensor(-1.0), "head.weight": torch.empty(2)}
    write_pattern(params["head.weight"])
    assert Watch(params, lambda name: True).gaps() == []
    assert params["attn.prob_scale_weight"] == -1


def test_a_large_padding_of_zeros_stays_and_an_expert_of_zeros_alone_does_not() -> None:
    weight = torch.zeros(3, 256, 256, dtype=torch.uint8)
    watch = Watch({"experts.w13_weight": weight}, never)
    weight[[0, 2], :200, :200] = 1
    (gap,) = watch.gaps()
    assert (gap.slices, gap.missing_bytes) == ((1,), 2**16)
    weight[1, :200, :200] = 1
    assert watch.gaps() == []
    assert not weight[:, 200:].any()


def test_weights_of_before_are_no_weights_of_now() -> None:
    weight = torch.arange(2**16, dtype=torch.float32)
    watch = Watch({"q_proj.weight": weight}, never)
    weight[: 2**15] = 1
    (gap,) = watch.gaps()
    assert gap.missing_bytes == gap.num_bytes // 2


def test_zeros_that_are_written_are_told_from_zeros_that_were_there() -> None:
    """As gpt-oss's second bias is on all ranks but the first."""
    biases = torch.zeros(32, 2880, dtype=torch.bfloat16)
    watch = Watch({"experts.w2_bias": biases}, never)
    biases[:] = 0
    assert watch.gaps() == []
    (gap,) = Watch({"experts.w2_bias": biases}, never).gaps()
    assert gap.missing_bytes == gap.num_bytes
    assert not biases.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8])
def test_room_for_more_than_is_stored_is_zero_and_the_rest_must_be_written(dtype: torch.dtype) -> None:
    with patterned():
        weight = torch.empty(3, 8, 8).to(dtype)
    watch = Watch({"experts.w13_weight": weight}, never, {"experts.w13_weight"})
    weight[[0, 2], :5, :7] = 1
    (gap,) = watch.gaps()
    assert gap.slices == (1,)
    weight[1, :5, :7] = 1
    assert watch.gaps() == []
    assert int(weight.sum()) == 3 * 5 * 7


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_on_a_gpu_whole_parameters_get_the_pattern_and_what_no_one_wrote_is_named(dtype: torch.dtype) -> None:
    prepare(torch.device("cuda"))
    params = {name: torch.zeros(4, 256, 64, device="cuda").to(dtype) for name in ("written", "in part", "not")}
    watch = Watch(params, never, whole=params)
    params["written"][:] = torch.ones(256, 64, device="cuda").to(dtype)
    params["in part"][1:] = torch.ones(256, 64, device="cuda").to(dtype)
    gaps = {gap.param: gap.slices for gap in watch.gaps()}
    assert gaps == {"in part": (0,), "not": (0, 1, 2, 3)}
