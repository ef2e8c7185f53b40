"""The files of ``deploy/``: each is checked by its tool, and each command line in them by this package's own parser."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadmaster.cli.main import build_parser

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROGRAM = "/opt/loadmaster/bin/loadmaster"
END_S = 10
"""The time that a server needs to end after its --shutdown-timeout."""


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def pods(path: Path) -> Iterator[dict[str, Any]]:
    for document in documents(path):
        if document["kind"] in ("Deployment", "StatefulSet"):
            yield document["spec"]["template"]["spec"]


def unit() -> dict[str, list[str]]:
    """Return the values of each name in the unit, in order."""
    values: dict[str, list[str]] = {}
    for line in (DEPLOY / "loadmaster.service").read_text(encoding="utf-8").splitlines():
        if re.match(r"\w+=", line):
            name, _, value = line.partition("=")
            values.setdefault(name, []).append(value)
    return values


def command_lines() -> list[tuple[str, list[str]]]:
    """Return every command line of the program, with the name of its file."""
    found = [("compose.yaml", documents(DEPLOY / "compose.yaml")[0]["services"]["server"]["command"])]
    for path in KUBERNETES:
        for pod in pods(path):
            for container in [*pod["initContainers"], *pod["containers"]]:
                words = container["args"]
                found.append((path.name, words[words.index("loadmaster") + 1 :] if "command" in container else words))
    for name in ("ExecStartPre", "ExecStart"):
        found += [("loadmaster.service", shlex.split(line)[1:]) for line in unit()[name]]
    container = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    found.append(("Containerfile", yaml.safe_load(re.findall(r"^CMD (.*)$", container, re.MULTILINE)[-1])))
    return found


@pytest.mark.parametrize(("file", "words"), command_lines(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_line_is_one_of_this_program(file: str, words: list[str]) -> None:
    args = build_parser().parse_args(words)
    assert args.command in ("plan", "verify", "serve")


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed (make test-deploy)")
    for document in documents(path):
        kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_pods_end_after_their_requests_and_have_no_rights(path: Path) -> None:
    for pod in pods(path):
        [server] = pod["containers"]
        drain_s = int(server["args"][server["args"].index("--shutdown-timeout") + 1])
        wait_s = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] >= wait_s + drain_s + END_S
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        for container in [*pod["initContainers"], server]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_two_nodes_run_as_many_processes_as_their_layout_has_ranks() -> None:
    [pod] = pods(DEPLOY / "kubernetes" / "two-nodes.yaml")
    words = pod["containers"][0]["args"]
    layout = build_parser().parse_args(words[words.index("loadmaster") + 1 :])
    nodes, local = (
        int(re.fullmatch(rf"--{name}=(\d+)", word)[1])
        for name, word in zip(("nnodes", "nproc-per-node"), (words[0], words[2]), strict=True)  # type: ignore[index]
    )
    assert nodes * local == layout.pipeline_parallel_size * layout.tensor_parallel_size
    checked = build_parser().parse_args(pod["initContainers"][0]["args"])
    for name in ("pipeline_parallel_size", "tensor_parallel_size", "enable_expert_parallel"):
        assert getattr(checked, name) == getattr(layout, name)


def test_the_unit_leaves_time_for_running_requests() -> None:
    words = shlex.split(unit()["ExecStart"][0])
    drain_s = int(words[words.index("--shutdown-timeout") + 1])
    assert int(unit()["TimeoutStopSec"][0].removesuffix("s")) >= drain_s + END_S


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "loadmaster.service").read_text(encoding="utf-8")
    copy = tmp_path / "loadmaster.service"
    copy.write_text(text.replace(PROGRAM, shutil.which("true") or "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=200)
    about_it = [line for line in (done.stdout + done.stderr).splitlines() if "loadmaster" in line]
    assert about_it == []


def test_compose_has_what_it_names() -> None:
    compose = documents(DEPLOY / "compose.yaml")[0]
    server = compose["services"]["server"]
    drain_s = int(server["command"][server["command"].index("--shutdown-timeout") + 1])
    assert int(server["stop_grace_period"].removesuffix("s")) >= drain_s + END_S
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "nothing is open to the network"
        assert {config["source"] for config in service.get("configs", [])} <= set(compose["configs"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("${MODEL") or (DEPLOY / source).exists(), source
    for config in compose["configs"].values():
        assert isinstance(yaml.safe_load(config["content"]), dict)


HADOLINT = shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (make test-deploy)")
def test_hadolint_accepts_the_container_file() -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, str(DEPLOY / "Containerfile")], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "")
