"""Writes ``tools/vllm_api.toml``: the routes of vLLM's server, and the fields of requests in vLLM and in OpenAI's client.

``python -m tools.vllm_api`` needs vLLM, and the ``openai`` package. It writes what the installed vLLM has, next to what the
file says of other versions: the lists have what any version has, and ``lacks`` what each lacks of it. The page
docs/reference/server-api.md is made from the file, and a test compares it with the installed packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_suffix(".toml")

VLLM: Final = {
    "/v1/completions": ("vllm.entrypoints.openai.completion.protocol", ("CompletionRequest",)),
    "/v1/chat/completions": ("vllm.entrypoints.openai.chat_completion.protocol", ("ChatCompletionRequest",)),
    "/v1/responses": ("vllm.entrypoints.openai.responses.protocol", ("ResponsesRequest",)),
    "/tokenize": ("vllm.entrypoints.serve.tokenize.protocol", ("TokenizeCompletionRequest", "TokenizeChatRequest")),
    "/detokenize": ("vllm.entrypoints.serve.tokenize.protocol", ("DetokenizeRequest",)),
}
"""Route → the module and the classes of vLLM's models of its body."""

OPENAI: Final = {
    "/v1/completions": ("openai.types.completion_create_params", "CompletionCreateParamsBase"),
    "/v1/chat/completions": ("openai.types.chat.completion_create_params", "CompletionCreateParamsBase"),
    "/v1/responses": ("openai.types.responses.response_create_params", "ResponseCreateParamsBase"),
}
"""Route → the module and the class of OpenAI's parameters, to which ``stream`` is added."""

ROUTE: Final = re.compile(r'@router\.(?:get|post|put|delete|websocket)\(\s*"([^"]+)"')


def vllm_routes() -> list[str]:
    """Return the paths that the installed vLLM declares in its source, in alphabetical order."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    files = (Path(spec.origin).parent / "entrypoints").rglob("*.py")
    paths = {path for file in files for path in ROUTE.findall(file.read_text(encoding="utf-8"))}
    return sorted(paths | {"/metrics"})  # which is mounted, not declared


def vllm_fields(route: str) -> list[str]:
    """Return the fields of vLLM's request for a route, in alphabetical order."""
    module, names = VLLM[route]
    classes: list[Any] = [getattr(importlib.import_module(module), name) for name in names]
    return sorted({field for kind in classes for field in kind.model_fields})


def openai_fields(route: str) -> list[str]:
    """Return the parameters of OpenAI's client for a route, in alphabetical order."""
    module, name = OPENAI[route]
    return sorted({*getattr(importlib.import_module(module), name).__annotations__, "stream"})


def recorded() -> dict[str, Any]:
    """Return the file's content."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def of_version(known: dict[str, Any], number: str) -> dict[str, list[str]]:
    """Return what the record says of one version: the fields of each route, and ``routes``."""
    lacks = known["lacks"][number]
    return {key: [n for n in names if n not in lacks.get(key, ())] for key, names in _any_version(known).items()}


def _any_version(known: dict[str, Any]) -> dict[str, list[str]]:
    return {"routes": known["routes"], **known["vllm"]}


def number_of(installed: str) -> str:
    """Return a version without the name of its build.

    >>> number_of("0.32.0+cpu")
    '0.32.0'
    """
    return installed.partition("+")[0]


def _listed(name: str, values: Iterable[str]) -> str:
    return f'"{name}" = [\n' + "".join(f'    "{value}",\n' for value in values) + "]\n"


def main() -> int:
    """Write the file, with what it says of other versions of vLLM."""
    known = recorded()
    versions = {number: of_version(known, number) for number in known["lacks"]}
    versions[number_of(version("vllm"))] = {"routes": vllm_routes(), **{route: vllm_fields(route) for route in VLLM}}
    every = {key: sorted({n for of in versions.values() for n in of[key]}) for key in ("routes", *VLLM)}
    parts = [
        f'openai_version = "{version("openai")}"\n',
        _listed("routes", every["routes"]),
        "\n[vllm]\n",
        *(_listed(route, every[route]) for route in VLLM),
        "\n[openai]\n",
        *(_listed(route, openai_fields(route)) for route in OPENAI),
    ]
    for number, of in sorted(versions.items()):
        parts.append(f'\n[lacks."{number}"]\n')
        missing = {key: [n for n in names if n not in of[key]] for key, names in every.items()}
        parts += [_listed(key, names) for key, names in missing.items() if names]
    FILE.write_text("".join(parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
