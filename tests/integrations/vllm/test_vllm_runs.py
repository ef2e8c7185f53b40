"""Real runs of vLLM on the CPU: engine, workers and plug-in as a user has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadmaster.synth import PRESETS, write_tiny
from tests.failures.damaged import DamagedCheckpoint

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PLAIN_MLA: dict[str, Any] = {
    **{"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
    **{"quantization_config": None, "topk_method": "noaux_tc"},
}
"""What vLLM runs on any CPU."""
GENERATE = Path(__file__).with_name("generate.py")


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    write_tiny(PRESETS["qwen3"], tmp_path / "qwen3", overrides={"head_dim": 32})  # the smallest that vLLM runs on a CPU
    return tmp_path / "qwen3"


def generate(model: Path, *others: Path, **engine: Any) -> subprocess.CompletedProcess[str]:
    workers = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    environment = os.environ | {
        "VLLM_LOGGING_LEVEL": "INFO",  # whatever the tests around have set
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(workers))),
    }
    return subprocess.run(
        [sys.executable, GENERATE, model, json.dumps(engine), *others],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def tokens(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))


@pytest.mark.parametrize(
    "layout",
    [
        {"enforce_eager": True},
        {"tensor_parallel_size": 2, "enforce_eager": True},
        {"pipeline_parallel_size": 2},  # vLLM's stages on a CPU need compilation
    ],
    ids=["one", "tp2", "pp2"],
)
def test_the_same_tokens_as_vllms_own_loader(layout: dict[str, Any], qwen: Path) -> None:
    ours = generate(qwen, load_format="loadmaster", **layout)
    assert tokens(ours) == tokens(generate(qwen, **layout))
    assert "written directly" in ours.stdout + ours.stderr


def test_the_same_tokens_with_experts_and_latent_attention(tmp_path: Path) -> None:
    write_tiny(PRESETS["deepseek-v3"], tmp_path, overrides=PLAIN_MLA)
    ours, theirs = (generate(tmp_path, load_format=f, enforce_eager=True) for f in ("loadmaster", "auto"))
    assert tokens(ours) == tokens(theirs)


def test_a_model_that_would_answer_garbage_does_not_start(qwen: Path) -> None:
    DamagedCheckpoint(qwen).drop(r"layers\.1\.self_attn\.o_proj\.weight$")
    assert tokens(generate(qwen, enforce_eager=True))  # garbage, without a word
    refused = generate(qwen, load_format="loadmaster", enforce_eager=True)
    assert refused.returncode != 0
    assert "tensor-missing  model.layers.1.self_attn.o_proj.weight" in refused.stdout + refused.stderr


def test_weights_loaded_again_are_those_of_a_fresh_start_and_a_checkpoint_that_lacks_some_changes_nothing(
    tmp_path: Path,
) -> None:
    first, second, lacking, cut = (tmp_path / n for n in ("first", "second", "lacking", "cut"))
    for path, seed in ((first, 0), (second, 1), (lacking, 2), (cut, 2)):
        write_tiny(PRESETS["qwen3"], path, seed=seed, overrides={"head_dim": 32})
    DamagedCheckpoint(lacking).drop(r"layers\.1\.self_attn\.k_proj\.weight$")
    shard = min(cut.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 100)
    done = generate(first, first, second, lacking, cut, first, load_format="loadmaster", enforce_eager=True)
    assert done.returncode == 0, done.stdout + done.stderr
    one, again, two, no, still, no_more, kept, back = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[[", '{"refused'))
    ]
    assert one == again == back
    assert two == still == kept == tokens(generate(second, enforce_eager=True)) != one
    assert "cannot reload: 1 tensors of the original load" in no["refused"]
    assert "model.layers.1.self_attn.k_proj.weight  BF16 [128, 128]: not in the checkpoint" in no["refused"]
    assert "the checkpoint has errors; nothing was read" in no_more["refused"]
