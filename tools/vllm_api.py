"""Writes ``tools/vllm_api.toml``: the routes of vLLM's server, and the fields of requests in vLLM and in OpenAI's client.

``python -m tools.vllm_api`` needs vLLM, and the ``openai`` package. The page docs/reference/server-api.md is made from the
file, and a test compares it with the installed packages.
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


def _listed(name: str, values: Iterable[str]) -> str:
    return f'"{name}" = [\n' + "".join(f'    "{value}",\n' for value in values) + "]\n"


def main() -> int:
    """Write the file."""
    parts = [
        f'vllm_version = "{version("vllm")}"\n',
        f'openai_version = "{version("openai")}"\n',
        _listed("routes", vllm_routes()),
        "\n[vllm]\n",
        *(_listed(route, vllm_fields(route)) for route in VLLM),
        "\n[openai]\n",
        *(_listed(route, openai_fields(route)) for route in OPENAI),
    ]
    FILE.write_text("".join(parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
