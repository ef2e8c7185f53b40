"""Who may use the server, and how much: keys, hosts, origins, TLS, the queue, the time of a request."""

import json
import ssl
import threading
from pathlib import Path

import httpx
import pytest
import trustme

from loadmaster.engine import Capacity
from loadmaster.errors import RunError
from loadmaster.server.settings import Cors, Settings, Tls
from loadmaster.server.tls import check_tls
from tests.server.fake import FakeEngine, eventually, serving

BODY = {"prompt": "hi", "max_tokens": 3}


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        ("/v1/models", "Bearer second", 200),
        ("/v1/models", "bearer first", 200),
        ("/v1/models", "Bearer third", 401),
        ("/v1/models", "second", 401),
        ("/v1/models", "", 401),
        ("/llm/v1/models", "", 401),
        ("/llm/v1/models", "Bearer first", 200),
        ("//v1/models", "", 401),
        ("/V1/models", "", 401),
        ("/health", "", 200),
        ("/llm/health", "", 200),
    ],
)
def test_every_path_but_the_open_ones_needs_one_of_the_keys(
    path: str, authorization: str, status: int, model_path: Path
) -> None:
    with serving(FakeEngine(), model_path, Settings(api_keys=("first", "second"), root_path="/llm")) as url:
        answer = httpx.get(url + path, headers={"Authorization": authorization}, timeout=200)
        assert answer.status_code == status
        assert "second" not in answer.text


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("llm.example.org", "/v1/models", 200),
        ("LLM.example.org:8000", "/v1/models", 200),
        ("a.b.example.net", "/v1/models", 200),
        ("example.net", "/v1/models", 400),
        ("evil.example", "/v1/models", 400),
        ("evil.example", "/health", 200),
    ],
)
def test_only_allowed_hosts_are_answered(host: str, path: str, status: int, model_path: Path) -> None:
    settings = Settings(allowed_hosts=("llm.example.org", "*.example.net"))
    with serving(FakeEngine(), model_path, settings) as url:
        assert httpx.get(url + path, headers={"Host": host}, timeout=200).status_code == status


def test_a_browser_may_use_the_api_from_the_origins_that_are_named(model_path: Path) -> None:
    settings = Settings(api_keys=("k",), cors=Cors(("https://chat.example.org",)))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with serving(FakeEngine(), model_path, settings) as url:
        for origin, status in (("https://chat.example.org", 200), ("https://evil.example", 400)):
            answer = httpx.options(f"{url}/v1/completions", headers={"Origin": origin, **asks}, timeout=200)
            assert answer.status_code == status, "without a key: browsers send none"
            assert answer.headers.get("Access-Control-Allow-Origin") == (origin if status == 200 else None)
    with serving(FakeEngine(), model_path) as url:
        answer = httpx.get(f"{url}/v1/models", headers={"Origin": "https://chat.example.org"}, timeout=200)
        assert "Access-Control-Allow-Origin" not in answer.headers, "by default none"


def test_requests_beyond_the_queue_get_429(model_path: Path) -> None:
    engine = FakeEngine(endless=True, capacity=Capacity(max_num_seqs=1))
    with serving(engine, model_path, Settings(max_queue=1)) as url:
        body = {**BODY, "stream": True}
        with (
            httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=200) as first,
            httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=200) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            refused = httpx.post(f"{url}/v1/completions", json=BODY, timeout=200)
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.json()["error"]["type"] == "TooManyRequests"
            assert httpx.get(f"{url}/v1/models", timeout=200).status_code == 200
        eventually(lambda: engine.running == 0)
        engine.endless = False
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=200).status_code == 200


def test_prompts_of_one_request_cannot_pass_a_queue_that_is_full(model_path: Path) -> None:
    engine = FakeEngine(endless=True, capacity=Capacity(max_num_seqs=2))
    with serving(engine, model_path, Settings(max_queue=1)) as url:
        body = {"prompt": ["a", "b", "c"], "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=200) as first:
            assert first.status_code == 200
            eventually(lambda: engine.running == 3)
            assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=200).status_code == 429


def test_a_request_that_takes_too_long_is_ended(model_path: Path) -> None:
    engine = FakeEngine(endless=True)
    with serving(engine, model_path, Settings(request_timeout_s=0.3)) as url:
        late = httpx.post(f"{url}/v1/completions", json=BODY, timeout=200)
        assert late.status_code == 504
        assert "within 0.3 s" in late.json()["error"]["message"]
        streamed = httpx.post(f"{url}/v1/completions", json={**BODY, "stream": True}, timeout=200)
        *_, error, end = [line for line in streamed.text.splitlines() if line]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == 504
        assert end == "data: [DONE]"
        eventually(lambda: engine.running == 0 and engine.given_up == 2)


def test_the_largest_body_is_a_setting(model_path: Path) -> None:
    with serving(FakeEngine(), model_path, Settings(max_body_bytes=100)) as url:
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=200).status_code == 200
        refused = httpx.post(f"{url}/v1/completions", json={**BODY, "prompt": "x" * 100}, timeout=200)
        assert refused.status_code == 413
        assert "at most 100" in refused.json()["error"]["message"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Tls:
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return Tls(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


@pytest.mark.parametrize("asks_clients", [False, True])
def test_https_with_and_without_certificates_of_clients(
    asks_clients: bool, tls: Tls, authority: trustme.CA, model_path: Path, tmp_path: Path
) -> None:
    if asks_clients:
        tls = Tls(tls.certfile, tls.keyfile, str(tmp_path / "ca.pem"), ssl.CERT_REQUIRED)
    check_tls(tls)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with serving(FakeEngine(), model_path, Settings(tls=tls)) as url:
        url = url.replace("http:", "https:")
        if asks_clients:
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                httpx.get(f"{url}/health", verify=trust, timeout=200)
            authority.issue_cert("someone@example.org").configure_cert(trust)
        answer = httpx.post(f"{url}/v1/completions", json=BODY, verify=trust, timeout=200)
        assert answer.json()["choices"][0]["text"] == "Hel"


def test_files_for_tls_that_cannot_be_used_are_refused_by_option(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    other = trustme.CA().issue_cert("127.0.0.1")
    other.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    for wrong, said in (
        (Tls(str(tmp_path / "none.pem")), "--ssl-certfile .*none.pem: no such file"),
        (Tls(str(tmp_path / "text")), "--ssl-certfile .*text: "),
        (Tls(tls.certfile, str(tmp_path / "other.pem")), "--ssl-keyfile .*other.pem: key values mismatch"),
        (Tls(tls.certfile, tls.keyfile, str(tmp_path / "none.pem")), "--ssl-ca-certs .*: no such file"),
        (Tls(tls.certfile, tls.keyfile, None, ssl.CERT_REQUIRED), "nothing can verify"),
        (Tls(tls.certfile, tls.keyfile, ciphers="NONE-SUCH"), "--ssl-ciphers"),
    ):
        with pytest.raises(RunError, match=said):
            check_tls(wrong)


def test_threads_that_submit_do_not_pass_the_limit_together(model_path: Path) -> None:
    """32 clients at once, 1 place and 3 that wait: at least 4 are answered, and every other gets 429."""
    engine = FakeEngine(delay_s=0.05, capacity=Capacity(max_num_seqs=1))
    with serving(engine, model_path, Settings(max_queue=3)) as url:
        start, statuses = threading.Barrier(32), list[int]()

        def ask() -> None:
            start.wait()
            statuses.append(httpx.post(f"{url}/v1/completions", json=BODY, timeout=200).status_code)

        clients = [threading.Thread(target=ask) for _ in range(32)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert set(statuses) <= {200, 429}
    assert engine.most_running <= 4
    assert statuses.count(200) == len(engine.seen) >= 4
