"""Values that a config.json cannot mean, one key at a time in every family: an error that says so, or a plan. Never a crash."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.llama import FAMILY
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.errors import LoadmasterError
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.testing.plans import write_checkpoint
from tests.architectures import test_mistral_names as mistral
from tests.architectures.test_text_models import MODELS
from tests.architectures.test_wrappers import TEXTS, config_of
from tests.conftest import quick
from tools.fuzz.values import key_paths

VALUES: tuple[Any, ...] = (None, "x", -1, 0, 10**12, [], {})
SECONDS = 10
"""Of computing, for one config. A plan of these takes milliseconds."""

CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"architectures": [name], "dtype": "bfloat16", **config} for name, config in MODELS.items()},
    **{name: {**config_of(name), "dtype": "bfloat16"} for name in TEXTS},
    **{name: preset.config_of(tiny=True) for name, preset in PRESETS.items() if preset.format is None},
}
"""A tiny config of every family."""


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    def hangs(*_: Any) -> None:
        raise TimeoutError(f"{SECONDS} s of computing")

    before = signal.signal(signal.SIGPROF, hangs)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def changed(config: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """Return a config with one value changed."""
    new: Any = deepcopy(config)
    at = new
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return dict(new)


def crash(checkpoint: Checkpoint) -> str | None:
    """Return what is raised instead of an error for users; None where a plan or such an error comes out."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        prove(build_plan(checkpoint))
    except LoadmasterError:
        return None
    except Exception as error:
        return repr(error)
    return None


@pytest.mark.parametrize("name", quick(CONFIGS, "MiniMaxText01ForCausalLM", "DbrxForCausalLM"))
def test_a_value_that_cannot_be_meant_is_an_error_for_users(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    checkpoint = replace(write_checkpoint(find_family(config), config, tmp_path / "m"), config=config)
    assert prove(build_plan(checkpoint)).proven
    cases = [(path, value) for path in key_paths(config) for value in VALUES]
    found = ((p, v, crash(replace(checkpoint, config=changed(config, p, v)))) for p, v in cases)
    assert [case for case in found if case[2]] == []


@pytest.mark.parametrize(
    ("name", "path", "value", "says"),
    [
        ("ling-3.0-flash", ("gated_attention_proj_granularity_type",), [], "is [], expected head_wise or element_wise"),
        ("deepseek-v4-flash", ("compress_ratios", 0), [], "compress_ratios must give 0, 4 or 128 for each"),
        ("deepseek-v4-flash", ("compress_ratios", 2), 4.0, "compress_ratios must give 0, 4 or 128 for each"),
        ("hy4-preview", ("index_topk",), None, "config.json has no 'index_topk'"),
        ("inkling", ("quantization_config",), {"quant_method": []}, "quantised by an unnamed method is not supported"),
        ("inkling", ("quantization_config",), {"quant_method": [1]}, "quantised by [1] is not supported"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(
    name: str, path: tuple[str | int, ...], value: Any, says: str
) -> None:
    config = changed(CONFIGS[name], path, value)
    family = find_family(config)
    with pytest.raises(LoadmasterError) as refused:
        family.schema(family.describe(config))
    assert says in refused.value.message


PARAMS = mistral.PARAMS | {
    "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"},
    "multimodal": {"vision_encoder_args": {"hidden_size": 4}},
    "sliding_window": [4096, None],
    "yarn": {"factor": 16, "original_max_position_embeddings": 16384, "beta": 32, "alpha": 1, "apply_scale": False},
    "moe": {"num_experts": 8, "num_shared_experts": 1, "expert_hidden_dim": 32, "num_experts_per_tok": 2},
    "qk_nope_head_dim": 16,
}


def test_so_is_one_of_params_json(tmp_path: Path) -> None:
    write_checkpoint(FAMILY, mistral.CONFIG, tmp_path, spelling=1)
    (tmp_path / "config.json").unlink()
    found = []
    for base in (PARAMS, {k: v for k, v in PARAMS.items() if k not in ("moe", "qk_nope_head_dim")}, mistral.PARAMS):
        for path in key_paths(base):
            for value in (*VALUES, 10**30, 1.5, [10**12], {"a": {"b": []}}):
                (tmp_path / "params.json").write_text(json.dumps(changed(base, path, value)))
                if what := crash(open_checkpoint(tmp_path)):
                    found.append((path, value, what))
    assert found == []
