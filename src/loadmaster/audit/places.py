"""Places in the engine's code, as reports name them (``vllm/…/file.py: Class.function``), and digests of the code there.

Two versions of the engine have the same digest where the code is the same, so a cause that was read in one of them holds in
the other. Source is read, nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

GONE: Final = "gone"
"""Instead of a digest: this version has no such file or name."""


def digest_places(places: Iterable[str], packages: Path) -> dict[str, str]:
    """Return a digest of the code at each place, or `GONE`; ``packages`` is the folder that holds the engine's package."""
    return {place: _digest(place, packages) for place in sorted(set(places))}


def _digest(place: str, packages: Path) -> str:
    file, _, name = place.partition(": ")
    path = packages / file
    if not path.is_file():
        return GONE
    source = path.read_text(encoding="utf-8")
    code = code_of(source, name) if name else source
    return GONE if code is None else hashlib.sha256(code.encode()).hexdigest()[:16]


def code_of(source: str, name: str) -> str | None:
    """Return the lines of a function or class by its qualified name, without their indents; None if there is none.

    Of several definitions (overloads) it is the last.

    >>> code_of("class A:\\n    def f(self):\\n        return 1\\n", "A.f")
    'def f(self):\\nreturn 1'
    >>> code_of("x = 1", "A.f")
    """
    node: ast.AST = ast.parse(source)
    for part in name.split("."):
        defined = (n for n in ast.walk(node) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
        named = [n for n in defined if n.name == part and n is not node]
        direct = [n for n in named if n in getattr(node, "body", ())]
        if not named:
            return None
        node = (direct or named)[-1]
    return "\n".join(line.strip() for line in (ast.get_source_segment(source, node) or "").splitlines())
