"""The command line as a process: exit codes, the one JSON object, nothing but it on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint

KEYS = [
    *("proven", "scope", "findings", "waivers", "checkpoint", "layout", "target", "ranks", "params", "plan_hash"),
    "elapsed_s",
]
RANK_KEYS = [
    *("rank", "pp_rank", "tp_rank", "dp_rank", "ep_rank", "layers", "draft_layers", "num_params", "resident_bytes"),
    *("needed_bytes", "fetched_bytes", "replica_bytes", "num_reads", "staging_bytes", "carries", "host_bytes"),
]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadmaster", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def plan(*args: object) -> tuple[int, dict[str, Any]]:
    done = run("plan", *args, "--json")
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_proven_plan_is_one_object_and_exit_0(tiny: Tiny) -> None:
    code, found = plan(tiny("glm-5.1-fp8"), "-pp", 2, "-tp", 2, "--speculative-config", '{"method": "mtp"}')
    assert code == 0
    assert list(found) == KEYS
    assert found["proven"]
    assert [list(r) for r in found["ranks"]] == [RANK_KEYS] * 4
    assert [r["layers"] for r in found["ranks"]] == [[0, 3], [0, 3], [3, 6], [3, 6]]
    assert found["ranks"][3]["draft_layers"] == [6]
    needed, replicas = (sum(r[k] for r in found["ranks"]) for k in ("needed_bytes", "replica_bytes"))
    assert needed == found["checkpoint"]["payload_bytes"] + replicas


def test_vllms_parameters_are_planned_without_vllm_and_listed_for_a_rank(tiny: Tiny) -> None:
    path = tiny("smollm2")
    code, found = plan(path, "-pp", 2, "--engine", "vllm", "--params", 1)
    assert (code, found["proven"], found["target"], list(found)) == (0, True, "vllm-0.33", KEYS)
    params = {p["name"]: p for p in found["params"]}
    assert len(params) == found["ranks"][1]["num_params"]
    qkv = {"name": "model.layers.2.self_attn.qkv_proj.weight", "dtype": "BF16", "shape": [192, 96]}
    assert params[qkv["name"]] == {**qkv, "bytes": 192 * 96 * 2, "alias": None}
    assert plan(path)[1]["params"] == []
    told = run("plan", path, "--engine", "vllm", "--params", 0).stdout
    assert "model.norm.weight  BF16 [96]\nlm_head.weight  BF16 [320, 96]  is model.embed_tokens.weight\n" in told
    assert "parameters of vllm-0.33" in told


def test_a_rank_that_the_layout_has_not_is_a_usage_error(tiny: Tiny) -> None:
    done = run("plan", tiny("qwen3"), "--params", 1)
    assert done.returncode == 2
    assert "the layout has ranks 0 to 0" in done.stderr


def test_a_plan_that_fails_prints_the_same_object_and_exits_1(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 256}))
    code, found = plan(path)
    assert (code, found["proven"], list(found)) == (1, False, KEYS)
    assert {f["code"] for f in found["findings"]} == {"shape-mismatch"}
    keys = ["code", "severity", "message", "tensor", "param", "file", "hint", "ranks"]
    assert sorted(found["findings"][0]) == sorted(keys)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["-pp", 99], "layout-stages"),
        (["-tp", 3], "layout-indivisible"),
        (["-pp", 2, "--layer-partition", "1,2"], "layout-stages"),
        (["--speculative-config", '{"method": "mtp"}'], "draft-missing"),
        (["--speculative-config", '{"method": "ngram"}'], "unsupported"),
    ],
)
def test_a_layout_that_cannot_be_is_a_finding(args: list[object], code: str, tiny: Tiny) -> None:
    status, found = plan(tiny("qwen3"), *args)
    assert status == 1
    assert [f["code"] for f in found["findings"]] == [code]
    assert found["ranks"] == []


@pytest.mark.parametrize("args", [["/nowhere/at/all"], ["."], ["no-such-owner/no-such-model"]])
def test_no_checkpoint_is_a_finding(args: list[str], tmp_path: Path) -> None:
    status, found = plan(*[a if a != "." else tmp_path for a in args])
    assert (status, found["proven"]) == (1, False)
    assert [f["code"] for f in found["findings"]] == ["checkpoint-missing"]


@pytest.mark.parametrize(
    "args",
    [
        ["plan"],
        ["plan", "x", "-pp", "0"],
        ["plan", "x", "-pp", "two"],
        ["plan", "x", "--layer-partition", "1;2"],
        ["plan", "x", "--speculative-config", "{"],
        ["plan", "x", "--nonsense"],
        ["nonsense"],
    ],
)
def test_the_command_line_alone_is_exit_2(args: list[str]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error" in done.stderr


def test_people_get_a_table_and_the_verdict(tiny: Tiny) -> None:
    done = run("plan", tiny("glm-5.2-fp8"), "-pp", 2, "--layer-partition", "4,4")
    assert done.returncode == 0
    assert "topk_indices" in done.stdout
    assert "proven" in done.stdout
    assert "\x1b" not in done.stdout  # colour only on a terminal


def test_a_surplus_tensor_is_waived_with_the_users_reason(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).copy(r"1\.self_attn\.o_proj", "1.self_attn.z_proj")
    assert plan(path)[0] == 1
    waive = ["--waive", "*.z_proj.*=left over from training"]
    code, found = plan(path, *waive)
    assert (code, found["findings"]) == (0, [])
    size = 128 * 128 * 2
    assert found["waivers"] == [
        {"reason": "left over from training", "num_tensors": 1, "bytes": size, "pattern": "*.z_proj.*"}
    ]
    told = run("plan", path, *waive).stdout
    assert f"waived: left over from training (--waive *.z_proj.*): 1 tensors, {size / 2**10:.1f} KiB\n" in told
    assert json.loads(run("load", path, *waive, "--json").stdout)["loaded"]


def test_load_reports_and_digests_every_parameter(tiny: Tiny) -> None:
    done = run("load", tiny("glm-5.1-fp8"), "-pp", 2, "--json", "--digest")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    names = [n for r in found["ranks"] for n in r["params"]]
    assert "layers.0.self_attn.indexer.wk_weights_proj.weight" in names
    assert sorted(found["ranks"][0]["params"]["embed_tokens.weight"]) == ["dtype", "sha256", "shape"]


def test_load_refuses_a_plan_that_is_not_proven_with_the_same_findings(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 256}))
    done = run("load", path, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["findings"] == plan(path)[1]["findings"]


def test_inspect_lists_tensors_with_their_place(tiny: Tiny) -> None:
    done = run("inspect", tiny("glm-5.1-fp8"), "--match", "layers.0.self_attn.indexer.wk", "--json")
    found = json.loads(done.stdout)
    assert [t["name"].rsplit(".", 1)[1] for t in found["tensors"]] == ["weight", "weight_scale_inv"]
    assert found["tensors"][0]["shape"] == [32, 320]


def test_synth_writes_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("synth", "qwen3", tmp_path / name, "--tiny", "--seed", 7).returncode == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    again = run("synth", "qwen3", tmp_path / "a", "--tiny")
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    unknown = run("synth", "gpt-9", tmp_path / "c", "--tiny")
    assert unknown.returncode == 1
    assert "glm-5.1-fp8" in unknown.stderr
