"""``loadmaster synth --config``: a checkpoint of any config whose architecture is described."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.cli.main import main
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.testing import stored_shapes
from tests.architectures.packages import install
from tests.testing.packages.loadmaster_solar_open import FAMILY as SOLAR_OPEN
from tests.testing.test_solar_open import PUBLISHED, SOURCE, loadmaster

MAIN = ("synth", "--full-size")


def synth(config: dict[str, Any], folder: Path, *options: str) -> int:
    (folder / "config.json").write_text(json.dumps(config))
    return main([*MAIN, "--config", str(folder / "config.json"), str(folder / "out"), *options])


@pytest.mark.parametrize("name", ["llama", "llama-fp8-static", "qwen3-moe-awq", "gpt-oss", "kimi-k2-int4"])
def test_a_published_config_gives_the_checkpoint_of_its_preset(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PRESETS[name].config_of(tiny=True)
    assert synth(config, tmp_path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert said["payload_bytes"] == checkpoint.table.payload_bytes
    assert said["notes"] == []
    proof = prove(build_plan(checkpoint, ParallelLayout(1, 2)))
    assert proof.proven and not [f for f in proof.findings if f.severity != "note"]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_a_family_of_another_package_is_made_planned_and_refused_for_vllm_with_the_reason(tmp_path: Path) -> None:
    install(tmp_path / "site", "loadmaster_solar_open", SOURCE.read_text(), "loadmaster_solar_open:FAMILY")
    (tmp_path / "solar_open.json").write_text(json.dumps(PUBLISHED))
    out = tmp_path / "solar_open"
    made = loadmaster(tmp_path / "site", *MAIN, "--config", tmp_path / "solar_open.json", out)
    assert made.returncode == 0, made.stderr
    names = set(stored_shapes(SOLAR_OPEN, PUBLISHED))
    assert f"{len(names):,} tensors in 42 file(s), 205,303,611,392 bytes" in made.stdout
    assert set(open_checkpoint(out).table.ids) == names
    assert sum(f.stat().st_blocks for f in out.iterdir()) * 512 < 2**22  # the bodies are sparse
    planned = loadmaster(tmp_path / "site", "plan", out, "-tp", 8, "--json")
    assert json.loads(planned.stdout)["proven"]
    program = (
        "from loadmaster import open_checkpoint, build_plan, UnsupportedError\n"
        "import sys\n"
        "try: build_plan(open_checkpoint(sys.argv[1]), target='vllm-0.32')\n"
        "except UnsupportedError as error: print(error.message)\n"
    )
    refused = python(tmp_path / "site", "-c", program, out)
    assert "SolarOpenForCausalLM is not described for vllm-0.32: its family is from another package" in refused.stdout
    assert "prove it for the native target, and stream it" in refused.stdout


def python(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *map(str, args)], env=environment, capture_output=True, text=True, timeout=300
    )


def test_what_the_config_leaves_open_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PRESETS["qwen3"].config_of(tiny=True) | {"quantization_config": {"quant_method": "hqq"}}
    config = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    assert synth(config, tmp_path) == 0
    said = capsys.readouterr().out
    assert "note: the weights are BF16, and config.json is written without quantization_config" in said
    assert "'hqq' is not supported" in said
    assert "note: config.json names no dtype: unquantised tensors are BF16" in said
    assert prove(build_plan(open_checkpoint(tmp_path / "out"), ParallelLayout(1, 2))).proven


def test_large_models_are_in_shards_of_five_gigabytes(tmp_path: Path) -> None:
    assert synth(PRESETS["llama"].config_of(tiny=False), tmp_path) == 0
    checkpoint = open_checkpoint(tmp_path / "out")
    assert len(checkpoint.files) == -(-checkpoint.table.payload_bytes // 5_000_000_000) > 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "{config}", "out", "--tiny"], "--tiny cannot be used with --config"),
        (["llama", "out", "--config", "{config}", "--full-size"], "both FAMILY (llama) and --config are given"),
        (["--config", "{config}", "--full-size"], "OUT, the folder to write, is missing"),
        (["llama", "--full-size"], "OUT, the folder to write, is missing"),
        (["--config", "nowhere.json", "out", "--full-size"], "nowhere.json is not a file"),
        (["--config", "{broken}", "out", "--full-size"], "cannot be read: Expecting property name"),
        (["--config", "{list}", "out", "--full-size"], "is not a JSON object"),
        (["--config", "{unknown}", "out", "--full-size"], "the architecture 'NobodyForCausalLM' is not known"),
        (["nobody", "out", "--full-size"], "for another model's config.json use --config FILE"),
    ],
)
def test_what_cannot_be_made_is_said(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "config": json.dumps(PRESETS["llama"].config_of(tiny=True)),
        "broken": "{",
        "list": "[]",
        "unknown": '{"architectures": ["NobodyForCausalLM"]}',
    }
    for name, text in files.items():
        (tmp_path / f"{name}-x.json").write_text(text)
    given = [a.format(**{name: f"{name}-x.json" for name in files}) for a in arguments]
    assert main(["synth", *given]) != 0
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
