"""The names, kinds and labels of vLLM's metrics, from its source: ``python -m tools.vllm_metrics FOLDER``.

FOLDER is the package's folder (``site-packages/vllm``). Nothing of it is imported. The result is kept in
``tests/server/golden``, so that our metrics are held against them where vLLM is not installed.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = Path("tests/server/golden/vllm_metrics.json")

SOURCES = ("v1/metrics/loggers.py", "v1/spec_decode/metrics.py")

KINDS = {"_counter_cls": "counter", "_gauge_cls": "gauge", "_histogram_cls": "histogram"}

BUCKETS = "v1/metrics/buckets.py"


def metrics_of(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each metric that a module creates: where its name is a variable, those of the pairs of name and help."""
    tree = ast.parse(source)
    pairs = [
        name.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple) and len(node.elts) == 2
        for name in node.elts[:1]
        if isinstance(name, ast.Constant) and str(name.value).startswith("vllm:")
    ]
    assigned = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KINDS):
            continue
        arguments = {k.arg: k.value for k in node.keywords}
        name, labels = arguments.get("name"), arguments.get("labelnames")
        found = {"kind": KINDS[node.func.attr], "labels": _labels(labels, assigned)}
        for one in [name.value] if isinstance(name, ast.Constant) else pairs:
            yield str(one), found


def _labels(node: ast.expr | None, assigned: Mapping[str, ast.expr]) -> list[str]:
    """Return the labels besides those of all metrics, which are in the variable ``labelnames``."""
    if isinstance(node, ast.Name) and node.id != "labelnames":
        node = assigned[node.id]
    if node is None:
        return []
    return [str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)]


def buckets_of(source: str) -> dict[str, list[float]]:
    """Return the constants that list the ends of buckets."""
    found: dict[str, list[float]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Tuple):
            found[node.target.id] = [float(value) for value in ast.literal_eval(node.value)]
    return found


def read(folder: Path) -> Mapping[str, Any]:
    """Return everything that the golden file holds."""
    metrics = dict(found for source in SOURCES for found in metrics_of((folder / source).read_text()))
    return {"metrics": dict(sorted(metrics.items())), "buckets": buckets_of((folder / BUCKETS).read_text())}


def main() -> None:
    """Write the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(read(Path(sys.argv[1])), indent=1) + "\n")
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
