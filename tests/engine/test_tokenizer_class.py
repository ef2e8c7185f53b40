"""The class of a checkpoint's tokenizer is the one that transformers' AutoTokenizer takes, and mostly loads without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadmaster.engine.tokenizer_class import ANY, KNOWN, OTHERWISE, is_for_any, load
from tests.conftest import Tiny
from tests.versions import TRANSFORMERS

VERSION = f"{KNOWN}.0"
known = pytest.mark.skipif(
    ".".join(map(str, TRANSFORMERS)) != KNOWN, reason=f"what AutoTokenizer takes is known of transformers {KNOWN}"
)


@known
def test_the_models_with_a_special_class_are_those_of_transformers() -> None:
    from transformers.models.auto import tokenization_auto as auto

    named = {kind: auto.TOKENIZER_MAPPING_NAMES.get(kind) for kind in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS}
    general = (*ANY, "PythonBackend", "MistralCommonBackend", None)
    assert {kind for kind, taken in named.items() if taken not in general} == OTHERWISE


@pytest.mark.parametrize(("preset", "is_any"), [("glm-5.1-fp8", True), ("llama", True), ("qwen3.8", False)])
def test_it_is_what_auto_tokenizer_takes(preset: str, is_any: bool, tiny: Tiny) -> None:
    from transformers import AutoTokenizer

    path = tiny(preset)
    taken, auto = load(path), AutoTokenizer.from_pretrained(path)
    assert type(taken) is type(auto)
    assert taken.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert taken.special_tokens_map == auto.special_tokens_map
    assert taken.chat_template == auto.chat_template
    assert is_for_any(path, VERSION) == is_any


@known
def test_no_torch_is_imported_for_the_class_for_any_tokenizer_json(tiny: Tiny) -> None:
    code = "import sys; from pathlib import Path; from loadmaster.engine import Tokenizer; "
    code += "assert Tokenizer(Path(sys.argv[1])).encode('a') == [97]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tiny("llama")], check=True, timeout=300)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast"}},
        {
            "tokenizer_config.json": {
                "tokenizer_class": "TokenizersBackend",
                "auto_map": {"AutoTokenizer": ["own.Own", None]},
            }
        },
        {"tokenizer_config.json": []},
        {"tekken.json": {}},
        {"config.json": {"model_type": "qwen2"}},
    ],
    ids=json.dumps,
)
def test_in_doubt_auto_tokenizer_chooses(change: dict[str, object], tiny_copy: Tiny) -> None:
    path = tiny_copy("llama")
    assert is_for_any(path, VERSION)
    assert not is_for_any(path, "5.25.0")
    for name, content in change.items():
        (path / name).write_text(json.dumps(content))
    assert not is_for_any(path, VERSION)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_without_its_files_auto_tokenizer_chooses(file: str, tiny_copy: Tiny) -> None:
    path: Path = tiny_copy("llama")
    (path / file).unlink()
    assert not is_for_any(path, VERSION)
