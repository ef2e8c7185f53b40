"""The rules of the judgement, on observations small enough to judge by eye."""

from __future__ import annotations

from typing import Any

import pytest

from loadmaster.audit.observed import NOWHERE, Attempt
from loadmaster.audit.verdict import Verdict, judge, names_one, says_what

O_PROJ = "model.layers.1.self_attn.o_proj.weight"
TOLD = f"{O_PROJ} has the wrong shape"


def raised(message: str, *, num_read: int = 3, built: bool = True, **more: Any) -> Attempt:
    return Attempt("raised", built=built, num_read=num_read, error="ValueError", message=message, **more)


def verdict(seen: Attempt, *subjects: str, **how: bool) -> Verdict:
    return judge(seen, subjects or (O_PROJ,), is_sound=how.pop("is_sound", False), **how).verdict


@pytest.mark.parametrize(
    ("outcome", "expected"), [("hung", Verdict.HANG), ("crashed", Verdict.CRASH), ("loaded", Verdict.SILENT)]
)
def test_a_process_that_does_not_answer_is_a_verdict_of_its_own(outcome: Any, expected: Verdict) -> None:
    assert verdict(Attempt(outcome)) is expected


def test_an_error_is_clear_before_the_first_tensor_and_late_after_it() -> None:
    assert verdict(raised(TOLD, num_read=0)) is Verdict.CLEAR
    assert verdict(raised(TOLD, num_read=1)) is Verdict.LATE


@pytest.mark.parametrize(
    "message",
    [
        "",
        f"'{O_PROJ}'",  # a bare KeyError
        "start (0) + length (256) exceeds dimension size (128).",
        "model.layers.11.self_attn.o_proj.weight has the wrong shape",
        "layers.2.self_attn.o_proj.weight has the wrong shape",
    ],
)
def test_an_error_that_does_not_both_name_and_say_is_unclear(message: str) -> None:
    assert verdict(raised(message)) is Verdict.UNCLEAR


@pytest.mark.parametrize(
    "message",
    [
        "layers.1.self_attn.o_proj.weight has the wrong shape",
        "layers.1.self_attn.qkv_proj.weight was not initialized from this checkpoint",
        "layers.1.mtp_block.self_attn.o_proj.weight is not in the checkpoint",
    ],
)
def test_the_fused_parameter_and_the_drafts_module_are_names_too(message: str) -> None:
    assert verdict(raised(message)) is Verdict.LATE


def test_what_the_engine_logged_counts_if_one_line_says_it_all() -> None:
    assert verdict(raised("", logged=(f"cannot load {O_PROJ} as it is",))) is Verdict.LATE
    assert verdict(raised(f"'{O_PROJ}'", logged=("some module or other is being loaded",))) is Verdict.UNCLEAR


@pytest.mark.parametrize("subject", ["model-00002-of-00002.safetensors", "num_hidden_layers", "lm_head.weight"])
def test_files_config_keys_and_the_models_own_tensors_are_named_by_their_names(subject: str) -> None:
    assert verdict(raised(f"there is something wrong with {subject}"), subject) is Verdict.LATE
    assert verdict(raised("there is something wrong with it"), subject) is Verdict.UNCLEAR


def test_bytes_that_nobody_wrote_are_silent_and_told() -> None:
    seen = judge(Attempt("loaded", gaps=((O_PROJ, 64, 64), ("b", 1, 8))), (O_PROJ,), is_sound=False)
    assert seen.verdict is Verdict.SILENT
    assert seen.evidence == f"{O_PROJ}: none of its 64 bytes was written; and 1 more parameter"
    (part,) = [judge(Attempt("loaded", gaps=((O_PROJ, 16, 64),)), (O_PROJ,), is_sound=False).evidence]
    assert part == f"{O_PROJ}: 16 of its 64 bytes were not written"


def test_values_that_differ_are_silent_even_where_the_defect_is_harmless_or_there_is_none() -> None:
    seen = Attempt("loaded", differences=((O_PROJ, "is odd"),))
    assert verdict(seen, harmless=True) is Verdict.SILENT
    assert verdict(seen, is_sound=True) is Verdict.SILENT


def test_a_warning_that_names_it_is_not_silence() -> None:
    seen = Attempt("loaded", gaps=((O_PROJ, 64, 64),), logged=(f"{O_PROJ} was skipped",))
    assert verdict(seen) is Verdict.WARNED
    assert verdict(Attempt("loaded", gaps=((O_PROJ, 64, 64),), logged=("something was skipped",))) is Verdict.SILENT


def test_a_defect_that_is_passed_over_is_silent_and_one_that_changes_nothing_is_right() -> None:
    seen = Attempt("loaded", num_params=5, num_compared=4)
    assert verdict(seen) is Verdict.SILENT
    assert verdict(seen, harmless=True) is Verdict.RIGHT
    assert judge(seen, (), is_sound=True).evidence == "4 of 5 parameters compared, all written"


def test_a_model_that_cannot_be_built_is_no_verdict_if_it_is_sound_or_the_machine_lacks_a_kernel() -> None:
    assert verdict(raised("no such class", built=False, num_read=0), is_sound=True) is Verdict.NOT_RUN
    assert verdict(raised("Failed to find a kernel for it", built=False, num_read=0)) is Verdict.NOT_RUN
    assert verdict(raised("no such class", built=False, num_read=0)) is Verdict.UNCLEAR


def test_verdicts_are_in_order_of_harm() -> None:
    assert sorted(Verdict, key=lambda v: v.harm)[0] is Verdict.SILENT
    assert Verdict.HANG.harm < Verdict.CRASH.harm < Verdict.UNCLEAR.harm < Verdict.LATE.harm < Verdict.CLEAR.harm


def test_a_layer_is_named_by_its_number_and_not_by_one_that_begins_alike() -> None:
    assert names_one("no module named 'layers.3' in it", ["model.layers.3."])
    assert not names_one("no module named 'layers.30' in it", ["model.layers.3."])
    assert names_one("MTP layer 6 weights missing", ["layer 6"])


def test_words_are_counted_and_names_are_not() -> None:
    assert says_what("expected four experts")
    assert not says_what("torch.Size a.b.c layers.1.mlp")


def test_a_sound_model_whose_names_are_not_known_is_not_judged() -> None:
    seen = Attempt("loaded", differences=((O_PROJ, NOWHERE), ("b", "is odd"), ("c", NOWHERE)))
    judged = judge(seen, (), is_sound=True)
    assert judged.verdict is Verdict.NOT_RUN
    assert judged.evidence == f"the audit does not know what the engine calls {O_PROJ}, and 1 more"
    assert verdict(seen) is Verdict.SILENT
