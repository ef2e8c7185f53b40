"""Every route and every field of vLLM and OpenAI has an answer here; the recorded lists are those of the packages."""

import importlib.util
from importlib.metadata import version

import pytest

from tools import vllm_api
from tools.server_api import MODELS, served_routes, what_happens

KNOWN = vllm_api.recorded()


@pytest.mark.parametrize("route", MODELS)
def test_no_field_of_vllm_and_openai_is_unknown(route: str) -> None:
    fields = {*KNOWN["vllm"][route], *KNOWN["openai"].get(route, ())}
    assert fields, "the record has fields for each route"
    for name in fields:
        assert what_happens(MODELS[route], name)


@pytest.mark.parametrize("route", MODELS)
def test_a_field_is_of_one_kind(route: str) -> None:
    model = MODELS[route]
    declared = model.model_fields.keys()
    assert not declared & model.inert.keys()
    assert not model.refused.keys() & model.inert.keys()


def test_versions_of_vllm_are_recorded_as_differences() -> None:
    older, newer = (vllm_api.of_version(KNOWN, number) for number in ("0.32.0", "0.33.0"))
    assert set(newer["routes"]) - set(older["routes"]) == {"/v1/decisions"}
    assert set(newer["/v1/completions"]) - set(older["/v1/completions"]) == {"return_weight_versions"}
    assert newer["/detokenize"] == older["/detokenize"] == ["model", "tokens"]


def test_routes_are_found() -> None:
    assert {"/v1/completions", "/v1/models/{name}", "/health", "/tokenize"} <= served_routes()


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="needs openai")
@pytest.mark.parametrize("route", vllm_api.OPENAI)
def test_the_record_is_that_of_the_installed_client(route: str) -> None:
    if version("openai") != KNOWN["openai_version"]:
        pytest.skip("another version of openai is installed")
    assert vllm_api.openai_fields(route) == KNOWN["openai"][route]


@pytest.mark.vllm
@pytest.mark.parametrize("route", vllm_api.VLLM)
def test_the_record_is_that_of_the_installed_vllm(route: str) -> None:
    known = vllm_api.of_version(KNOWN, vllm_api.number_of(version("vllm")))
    assert vllm_api.vllm_fields(route) == known[route]
    assert vllm_api.vllm_routes() == known["routes"]
