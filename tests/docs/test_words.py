"""Each type that words.md explains exists in the package."""

import ast
import re

from tests.docs.markdown import ROOT


def defined_types() -> set[str]:
    """Return the classes and capitalised names that modules of the package define."""
    names = set()
    for file in ROOT.glob("src/loadmaster/**/*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_types_in_words_exist() -> None:
    text = (ROOT / "docs/concepts/words.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z]\w*)`", text))
    assert named
    assert named - defined_types() == set()
