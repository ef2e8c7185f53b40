"""`plan` with options about memory, cuts and load time: what is printed, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadmaster.cli.main import main
from tests.conftest import Tiny

Said = pytest.CaptureFixture[str]


def plan(said: Said, path: Path, *given: str) -> tuple[int, dict[str, Any]]:
    code = main(["plan", str(path), *given, "--json"])
    return code, json.loads(said.readouterr().out)


def test_memory_is_only_counted_when_it_is_asked_for(tiny: Tiny, capsys: Said) -> None:
    assert "memory" not in plan(capsys, tiny("llama"))[1]
    code, found = plan(capsys, tiny("llama"), "--max-num-seqs", "4", "--max-model-len", "64")
    assert (code, found["memory"]["max_num_seqs"], found["memory"]["max_model_len"]) == (0, 4, 64)
    assert found["memory"]["estimated"] == ["activations_bytes", "logits_bytes", "runtime_bytes", "graphs_bytes"]
    assert found["memory"]["ranks"][0]["parameters_bytes"] == found["ranks"][0]["resident_bytes"]


def test_a_device_that_is_too_small_is_one_finding_and_exit_1(tiny: Tiny, capsys: Said) -> None:
    for device in ("1MiB", "1GiB"):  # too small for the parameters, and for the rest
        code, found = plan(capsys, tiny("llama"), "--device-memory", device)
        assert (code, [f["code"] for f in found["findings"]]) == (1, ["memory-capacity"])
    code, found = plan(capsys, tiny("llama"), "--device-memory", "8GiB")
    assert (code, found["findings"], found["memory"]["ranks"][0]["device_bytes"]) == (0, [], 8 * 2**30)
    assert found["memory"]["kv_cache"]["num_tokens"] >= 512


def test_the_table_marks_estimates_and_says_how_many_tokens_fit(tiny: Tiny, capsys: Said) -> None:
    assert (
        main(["plan", str(tiny("deepseek-v3")), "-pp", "2", "-sc", '{"method": "mtp"}', "--device-memory", "8GiB"]) == 0
    )
    said = capsys.readouterr().out
    assert "of them MTP" in said and "left ~" in said
    assert "tokens fit at a time" in said and "~ is an estimate, not measured" in said


def test_options_of_vllm_are_named_where_the_native_engine_ignores_them(tiny: Tiny, capsys: Said) -> None:
    options = ["--kv-cache-dtype", "fp8", "--gpu-memory-utilization", "0.8", "--max-num-seqs", "2"]
    path = str(tiny("qwen3-moe"))
    assert main(["plan", path, *options, "--json"]) == 0
    said = capsys.readouterr()
    assert "ignored: --gpu-memory-utilization, --kv-cache-dtype (of vLLM: --engine vllm)" in said.err
    native = json.loads(said.out)["memory"]
    assert main(["plan", path, *options, "--engine", "vllm", "--json"]) == 0
    of_vllm = json.loads(capsys.readouterr().out)["memory"]
    assert of_vllm["gpu_memory_utilization"] == 0.8
    assert of_vllm["ranks"][0]["request_bytes"] * 2 == native["ranks"][0]["request_bytes"]


def test_a_cache_that_is_not_covered_is_refused(tiny: Tiny, capsys: Said) -> None:
    assert main(["plan", str(tiny("qwen3-moe")), "--engine", "vllm", "--kv-cache-dtype", "nvfp4"]) == 1
    assert "nvfp4" in capsys.readouterr().err


def test_a_cache_that_is_not_known_is_said_to_be_unknown(tiny: Tiny, capsys: Said) -> None:
    assert main(["plan", str(tiny("qwen3-next")), "--max-num-seqs", "2"]) == 0
    said = capsys.readouterr().out
    assert "unknown" in said and "linear attention and Mamba keep a state for each request" in said


def test_a_model_without_a_length_is_judged_by_its_parameters_and_that_is_said(tiny_copy: Tiny, capsys: Said) -> None:
    path = tiny_copy("llama")
    config = json.loads((path / "config.json").read_text())
    del config["max_position_embeddings"]
    (path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(path), "--device-memory", "1GiB", "--json"]) == 0
    said = capsys.readouterr()
    assert "memory" not in json.loads(said.out)
    assert "only parameters are compared with --device-memory" in said.err and "--max-model-len" in said.err
    assert main(["plan", str(path), "--max-num-seqs", "2"]) == 1


def test_cuts_are_listed_with_what_crosses(tiny: Tiny, capsys: Said) -> None:
    code, found = plan(capsys, tiny("deepseek-v3"), "-pp", "2", "--cuts")
    assert (code, [c["is_made"] for c in found["cuts"]]) == (0, [False, False, False, True, False, False, False])
    assert main(["plan", str(tiny("deepseek-v3")), "-pp", "2", "--cuts"]) == 0
    said = capsys.readouterr().out
    assert "* 3" in said and "refused: the first stage would have no layer" in said


def test_a_partition_is_found_and_used(tiny: Tiny, capsys: Said) -> None:
    code, found = plan(capsys, tiny("smollm2"), "-pp", "2", "--layer-partition", "auto")
    assert code == 0
    assert sum(found["layout"]["layer_partition"]) == 4
    assert plan(capsys, tiny("smollm2"), "--layer-partition", "auto")[1]["layout"]["layer_partition"] is None


def test_the_time_of_a_load_is_predicted_with_its_assumptions(tiny: Tiny, capsys: Said) -> None:
    rates = ["--storage", "2GB/s", "--link", "55GB/s", "--hosts", "2"]
    code, found = plan(capsys, tiny("llama"), "-pp", "2", *rates)
    assert (code, found["load_time"]["hosts"], len(found["load_time"]["host_bytes"])) == (0, 2, 2)
    assert main(["plan", str(tiny("llama")), "-pp", "2", *rates]) == 0
    said = capsys.readouterr().out
    assert "loading takes about 0.1 s" in said and "assumed: the ranks of a host share its storage" in said
    assert main(["plan", str(tiny("llama")), "--hosts", "2"]) == 2
    assert "add --storage" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["2GB", "2", "fast/s"])
def test_a_rate_without_a_second_is_refused(rate: str, capsys: Said) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "MODEL", "--storage", rate])
    assert "--storage" in capsys.readouterr().err


def test_fit_names_the_best_layout_and_the_smallest_machine(tiny: Tiny, tmp_path: Path, capsys: Said) -> None:
    path, devices = str(tiny("qwen3-moe")), ["--devices", "2", "--device-memory", "4GiB"]
    assert main(["fit", path, *devices, "--max-num-batched-tokens", "64"]) == 0
    said = capsys.readouterr().out
    assert "best first" in said and "smallest machine of such devices: 1, as one device" in said
    page = tmp_path / "fit.html"
    assert main(["fit", path, *devices, "--max-num-batched-tokens", "64", "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "Fits 2 device(s) of 4.00 GiB on 1 host(s)" in page.read_text()
    assert (found["fits"], found["proven"], found["devices"]) == (True, True, [4 * 2**30] * 2)
    assert found["fitting"][0]["options"] in said


def test_a_model_that_does_not_fit_is_exit_1_with_the_reasons(tiny: Tiny, capsys: Said) -> None:
    assert main(["fit", str(tiny("llama")), "--device-memory", "1GiB,1GiB"]) == 1
    said = capsys.readouterr().out
    assert "does not fit 2 device(s)" in said and "too small: -tp 2" in said and "no machine of up to 64" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "the memory of the devices is not known"),
        (["--devices", "H100x2", "--device-memory", "80GiB"], "leave out --device-memory"),
        (["--devices", "3", "--device-memory", "80GiB,24GiB"], "--device-memory names 2"),
        (["--devices", "0", "--device-memory", "80GiB"], "expected 1 to"),
    ],
)
def test_devices_that_are_not_described_are_a_slip(given: list[str], says: str, tiny: Tiny, capsys: Said) -> None:
    assert main(["fit", str(tiny("llama")), *given]) == 2
    assert says in capsys.readouterr().err


def test_a_kind_of_device_that_is_not_known_is_refused_with_those_that_are(tiny: Tiny, capsys: Said) -> None:
    assert main(["fit", str(tiny("llama")), "--devices", "H900x8"]) == 1
    assert "H200" in capsys.readouterr().err
