"""An audit's results as they are kept: one JSON file, a case a line, so that two runs can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from loadmaster.errors import UsageError

Row: TypeAlias = dict[str, Any]
"""A case as `Result.as_json` returns it."""


@dataclass(frozen=True)
class Recorded:
    """The results of a run, the versions of the packages involved, and digests of the engine's code (`places`)."""

    versions: Mapping[str, str]
    rows: Sequence[Row]
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The engine's version, without the name of its build.

        >>> Recorded({"vllm": "0.32.0+cpu"}, ()).version
        '0.32.0'
        """
        return self.versions["vllm"].split("+")[0]

    @property
    def stem(self) -> str:
        """The stem of a report's files: the engine and the first two numbers of its version.

        >>> Recorded({"vllm": "0.32.0+cpu"}, ()).stem
        'vllm-0.32'
        """
        return f"vllm-{'.'.join(self.version.split('.')[:2])}"

    def text(self) -> str:
        """Return JSON, a result a line."""
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.rows)
        places = f'"places": {json.dumps(dict(self.places), indent=0)}, ' if self.places else ""
        return f'{{"versions": {json.dumps(dict(self.versions))}, {places}"results": [\n{lines}\n]}}\n'


def read_recorded(path: Path) -> Recorded:
    """Return the results that a file holds.

    Raises:
        UsageError: the file is not one that ``loadmaster audit --out`` wrote.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Recorded(values["versions"], values["results"], values.get("places", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} does not hold the results of an audit: {type(error).__name__}: {error}",
            hint="give a Python that has vLLM and Loadmaster, or the .json that `loadmaster audit vllm --out` wrote",
        ) from error
