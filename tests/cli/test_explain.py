"""``loadmaster explain`` as a process."""

from __future__ import annotations

import json

from tests.cli.test_plan import run
from tests.conftest import Tiny


def test_a_parameter_of_vllm_that_has_the_name_of_a_tensor_is_both(tiny: Tiny) -> None:
    done = run("explain", tiny("smollm2"), "model.norm.weight", "-pp", 2, "--engine", "vllm", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["param"]["target"] == "vllm-0.33"
    assert found["param"]["shares"][0]["ranks"] == [1]
    assert found["tensor"]["uses"][0]["param"] == "model.norm.weight"


def test_an_unknown_name_is_a_wrong_command_line(tiny: Tiny) -> None:
    done = run("explain", tiny("smollm2"), "layers.0.self_attn.qkv_proj.wieght")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nearest: layers.0.self_attn.qkv_proj.weight" in done.stderr
