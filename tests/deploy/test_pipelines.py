"""The GitHub Action and the pre-commit hook: valid by their schemas, and run once as CI would run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Tiny

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"


def environment(bin_: Path, **more: str) -> dict[str, str]:
    """Return an environment in which ``loadmaster`` is this package."""
    bin_.mkdir()
    program = bin_ / "loadmaster"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loadmaster "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", **more}


def test_action_is_valid_by_githubs_schema() -> None:
    pytest.importorskip("check_jsonschema", reason="not installed (make test-deploy)")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions", str(ACTION)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("options", "code"), [("", 0), ("-pp 2 --waive 'x.*=not there'", 0), ("-tp 3", 1)])
def test_action_plans_with_its_options_and_leaves_the_findings(
    options: str, code: int, tiny: Tiny, tmp_path: Path
) -> None:
    action: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "plan")
    output = tmp_path / "output"
    runner = {"RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(output)}
    asked = {"MODEL": str(tiny("qwen3")), "OPTIONS": options}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub starts it
    done = subprocess.run(shell, env=environment(tmp_path / "bin", **runner, **asked), timeout=300)
    assert done.returncode == code
    files = dict(line.split("=", 1) for line in output.read_text().splitlines())
    (run,) = json.loads(Path(files["sarif"]).read_text())["runs"]
    assert {r["level"] for r in run["results"] if r["level"] == "error"} == ({"error"} if code else set())
    assert Path(files["junit"]).exists()
    assert set(action["outputs"]) == set(files)


def test_hook_is_run_by_pre_commit_when_a_config_changes(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("pre_commit", reason="not installed (make test-deploy)")
    repository = tmp_path / "repository"
    shutil.copytree(tiny("qwen3"), repository / "model")
    (hook,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    hook |= {"language": "system", "args": ["model", "-pp", "2"]}  # installed already: no environment is made
    (repository / ".pre-commit-config.yaml").write_text(json.dumps({"repos": [{"repo": "local", "hooks": [hook]}]}))
    env = environment(tmp_path / "bin", PRE_COMMIT_HOME=str(tmp_path / "cache"))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, timeout=300)

    pre_commit = (sys.executable, "-m", "pre_commit")
    assert run(*pre_commit, "validate-manifest", str(HOOKS)).returncode == 0
    run("git", "init", "--quiet")
    run("git", "add", ".")
    done = run(*pre_commit, "run")
    assert (done.returncode, done.stdout.rstrip()[-6:]) == (0, "Passed"), done.stdout
    config = json.loads((repository / "model/config.json").read_text())
    (repository / "model/config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    run("git", "add", ".")
    done = run(*pre_commit, "run")
    assert done.returncode == 1
    assert "Failed" in done.stdout
