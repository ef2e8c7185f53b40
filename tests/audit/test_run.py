"""A handful of cases end to end, with vLLM: a silent one, a clear one, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadmaster.audit.cases import find_cases
from loadmaster.audit.run import Audit, Result, prepare
from loadmaster.audit.verdict import Verdict

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    prepare()
    audit = Audit(Path(tmp_path_factory.mktemp("audit")))

    def one(name: str) -> Result:
        (case,) = find_cases(name)
        return audit.run(case)

    return one


def test_sound_checkpoints_are_loaded_right_stage_by_stage_and_cut(run: Callable[[str], Result]) -> None:
    for name in ("qwen3/sound", "qwen3/sound@pp1of2", "glm-5.1-fp8/sound@tp1of2", "deepseek-v3/sound-draft"):
        result = run(name)
        assert (result.verdict, result.ours_judgement.verdict) == (Verdict.RIGHT, Verdict.RIGHT), result
        assert result.auto.num_compared >= result.auto.num_params - 2 > 0
        assert result.findings == ()


def test_a_projection_that_is_missing_is_served_in_silence_and_shown_by_its_bytes(run: Callable[[str], Result]) -> None:
    result = run("qwen3/o_proj-missing")
    assert result.verdict is Verdict.SILENT
    assert result.auto.gaps == (("model.layers.1.self_attn.o_proj.weight", 32768, 32768),)
    assert result.processed  # and nothing was found out by that
    assert [f.code for f in result.findings] == ["tensor-missing"]
    assert result.ours_judgement.verdict is Verdict.CLEAR
    assert "o_proj" in result.ours.message


def test_values_of_another_file_are_shown_by_the_comparison(run: Callable[[str], Result]) -> None:
    result = run("qwen3/tensor-twice")
    assert result.verdict is Verdict.SILENT
    assert result.auto.gaps == ()
    assert result.auto.differences
    assert result.ours_judgement.verdict is Verdict.CLEAR


def test_a_warning_that_the_sound_checkpoint_gets_too_is_no_warning_of_the_defect(run: Callable[[str], Result]) -> None:
    result = run("llama-awq/zeros-missing")
    assert any("layers.1.mlp.down_proj.scales" in line for line in result.auto.logged)
    assert result.verdict is Verdict.SILENT
    assert run("qwen3/o_proj-int8").verdict is Verdict.WARNED


def test_a_missing_shard_that_the_index_names_is_refused_clearly(run: Callable[[str], Result]) -> None:
    result = run("qwen3/shard-missing")
    assert result.verdict is Verdict.CLEAR
    assert "model-00002-of-00002.safetensors" in result.auto.message
    assert (result.auto.built, result.auto.num_read) == (True, 0)
    assert "CHECKPOINT/" in result.auto.message  # and no path of this machine


def test_a_bare_name_is_unclear_and_the_place_is_told(run: Callable[[str], Result]) -> None:
    result = run("glm-5.1-fp8/tensor-unknown")
    assert result.verdict is Verdict.UNCLEAR
    assert result.auto.error == "KeyError"
    assert result.auto.raised_in in (
        "vllm/model_executor/models/deepseek_v2.py: DeepseekV2Model.load_weights",
        "vllm/models/deepseek_v32/nvidia/model.py: DeepseekV32Model.load_weights",  # on CUDA
    )


def test_what_a_cpu_cannot_build_is_not_run(run: Callable[[str], Result]) -> None:
    assert run("llama-nvfp4/sound").verdict is Verdict.NOT_RUN


def test_results_are_the_same_twice(run: Callable[[str], Result]) -> None:
    assert run("glm-5.1-fp8/expert-missing").as_json() == run("glm-5.1-fp8/expert-missing").as_json()
