"""Finds phrases that are hard to read, in the code and in the documents that people write: ``python -m tools.phrases``.

The phrases, and what to write instead, are in ``phrases.toml``. Generated pages and audits are not read.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

LIST = Path(__file__).with_name("phrases.toml")

READ = (
    "src/**/*.py",
    "docs/index.md",
    "docs/guides/*.md",
    "docs/concepts/*.md",
    "docs/decisions/*.md",
    "*.md",
    "benchmarks/README.md",
)


def main() -> int:
    """Print each hard phrase with its place. Return the exit status."""
    lines = [line for pattern in READ for file in sorted(ROOT.glob(pattern)) for line in hard_phrases(file)]
    print("\n".join(lines) or "no hard phrases")
    return 1 if lines else 0


def hard_phrases(file: Path) -> Iterator[str]:
    """Yield ``file:line: phrase; write …`` for each hard phrase of a file."""
    text = file.read_text(encoding="utf-8")
    for phrase, instead in tomllib.loads(LIST.read_text(encoding="utf-8"))["phrases"].items():
        for match in re.finditer(phrase.replace(" ", r"\s+(?:#\s+)?"), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
            yield f"{name}:{line}: {' '.join(match[0].split())!r}; write: {instead}"


if __name__ == "__main__":
    sys.exit(main())
