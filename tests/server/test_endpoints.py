"""Routes other than those that generate text."""

from pathlib import Path

import httpx
import openai
import pytest

from loadmaster import __version__
from loadmaster.engine import Tokenizer
from loadmaster.server.service import Service
from loadmaster.server.settings import Settings
from loadmaster.server.unsupported import UNSUPPORTED
from tests.server.fake import FakeEngine, client_of, eventually, serving

USER = [{"role": "user", "content": "u"}]


def post(url: str, path: str, **body: object) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=200)


def test_a_model_is_found_by_each_of_its_names(url: str) -> None:
    with client_of(url) as client:
        model = client.models.retrieve("alias")
        assert (model.id, model.object, model.owned_by) == ("alias", "model", "loadmaster")
        assert model.model_extra == {"root": "toy", "parent": None, "max_model_len": 64}
        with pytest.raises(openai.NotFoundError, match="'other/name' does not exist; served: toy, alias") as caught:
            client.models.retrieve("other/name")
        assert caught.value.type == "NotFoundError"
        assert caught.value.code == "404"


def test_a_models_name_may_have_slashes(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Service, engine: FakeEngine, tokenizer: Tokenizer, _: object, settings: object) -> None:
        original(self, engine, tokenizer, ["zai-org/GLM-5.1", "/data/model"])  # type: ignore[arg-type]

    original = Service.__init__
    monkeypatch.setattr(Service, "__init__", init)
    with serving(FakeEngine(), model_path) as url, client_of(url) as client:
        assert [m.id for m in client.models.list()] == ["zai-org/GLM-5.1", "/data/model"]
        for name in ("zai-org/GLM-5.1", "/data/model"):
            assert client.models.retrieve(name).id == name
        assert httpx.get(f"{url}/v1/models/zai-org/GLM-5.1").json()["id"] == "zai-org/GLM-5.1"


def test_the_version_and_the_load(url: str, model_path: Path) -> None:
    assert httpx.get(f"{url}/version").json() == {"version": __version__}
    assert httpx.get(f"{url}/load").json() == {"server_load": 0}
    with (
        serving(FakeEngine(endless=True), model_path) as busy,
        client_of(busy) as client,
        client.completions.create(model="toy", prompt=["a", "b"], stream=True) as parts,
    ):
        next(iter(parts))
        assert httpx.get(f"{busy}/load").json() == {"server_load": 1}, "HTTP requests are counted, not prompts"
        parts.close()
        eventually(lambda: httpx.get(f"{busy}/load").json() == {"server_load": 0})


def test_a_ping_is_answered_with_the_status_of_health(url: str, model_path: Path) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{url}/ping")
        assert (answer.status_code, answer.content) == (200, b"")
    with serving(FakeEngine(state="loading"), model_path, ready=False) as loading:
        assert httpx.get(f"{loading}/ping").status_code == 503
        assert httpx.get(f"{loading}/version").status_code == 200


def test_a_text_is_tokenized(url: str) -> None:
    answer = post(url, "/tokenize", model="toy", prompt="hé<|end|>", return_token_strs=True).json()
    assert answer == {
        "count": 4,
        "max_model_len": 64,
        "tokens": [104, 0xC3, 0xA9, 257],
        "token_strs": ["h", "Ã", "©", "<|end|>"],
    }
    assert post(url, "/tokenize", prompt="h").json()["token_strs"] is None
    assert post(url, "/tokenize", prompt="x" * 5000).json()["count"] == 5000, "longer than the model's length"


def test_a_conversation_is_tokenized_as_it_would_be_answered(url: str) -> None:
    assert post(url, "/tokenize", messages=USER).json()["tokens"] == [259, *b"u", 257, 260]
    assert post(url, "/tokenize", messages=USER, add_generation_prompt=False).json()["tokens"] == [259, *b"u", 257]
    assert post(url, "/tokenize", messages=USER, continue_final_message=True).json()["tokens"] == [259, *b"u"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": USER}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "u"}]}, "messages"),
        ({"messages": USER, "tools": [{}]}, "tools"),
        ({"messages": USER, "chat_template": "x"}, "chat_template"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(url: str, body: dict[str, object], param: str) -> None:
    answer = post(url, "/tokenize", **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_tokens_are_detokenized_with_special_tokens(url: str) -> None:
    assert post(url, "/detokenize", tokens=[104, 0xC3, 0xA9, 257]).json() == {"prompt": "hé<|end|>"}
    assert post(url, "/detokenize", tokens=[]).json() == {"prompt": ""}
    for tokens in ([262], [-1], [2**63], ["a"], [True]):
        answer = post(url, "/detokenize", tokens=tokens)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tokens"
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert post(url, path, model="other", **body).status_code == 404


@pytest.mark.parametrize("path", UNSUPPORTED)
def test_what_is_not_supported_says_so(url: str, path: str) -> None:
    answer = post(url, path.replace("{response_id}", "resp_1"))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["message"] == f"{path} is not supported: {UNSUPPORTED[path]}"
    assert (error["type"], error["code"], error["param"]) == ("NotFoundError", 404, None)


def test_what_nobody_knows_does_not_exist(url: str) -> None:
    answer = httpx.get(f"{url}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


def test_an_api_key_protects_all_routes_but_those_that_show_the_state(model_path: Path) -> None:
    with serving(FakeEngine(), model_path, Settings(api_keys=("secret",))) as url:
        for path in ("/v1/models", "/v1/models/toy", "/v1/embeddings", "/v2/embed", "/inference/v1/generate"):
            assert httpx.get(url + path).status_code == 401, path
        for path in ("/health", "/ping", "/version", "/load"):
            assert httpx.get(url + path).status_code == 200, path
        assert post(url, "/tokenize", prompt="a").status_code == 401, "it computes, so it needs one here"
        assert httpx.get(f"{url}/v1/models/toy", headers={"Authorization": "Bearer secret"}).status_code == 200
