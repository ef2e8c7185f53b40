"""The page in a real browser, over an engine in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from loadmaster.engine import Engine, Tokenizer
from loadmaster.errors import RunError
from loadmaster.server.service import Service
from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, eventually, serving, serving_app
from tests.server.page.conftest import TIMEOUT_MS

if TYPE_CHECKING:
    from playwright.sync_api import Page

HTTP = httpx.Client(timeout=200)
pytestmark = pytest.mark.browser


def wait_for(page: Page, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).first.wait_for(timeout=TIMEOUT_MS)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine, model_path: Path) -> Iterator[str]:
    with serving(engine, model_path) as url:
        yield url


def test_loading_is_shown_by_rank_and_becomes_ready_without_a_reload(page: Page, model_path: Path) -> None:
    engine = FakeEngine(state="loading", loaded=(500, 1000))
    service = Service(cast(Engine, engine), Tokenizer(model_path), ["toy"])
    with serving_app(service) as url:
        page.goto(url)
        wait_for(page, "#state", "Loading")
        assert page.text_content("#loading-share") == "50 %"
        assert page.get_attribute("#loading-bar", "aria-valuenow") == "50"
        assert page.locator("#loading-ranks .row").all_text_contents() == [
            f"Stage {stage}250 B of 500 B" for stage in range(2)
        ]
        assert page.is_hidden("#work")
        threading.Thread(target=service.load, daemon=True).start()
        engine.ready.set()
        wait_for(page, "#state", "Ready")
        assert page.is_hidden("#loading")
        assert page.is_visible("#work")
        assert page.title() == "toy · Loadmaster"


def test_a_prompt_is_answered_in_a_stream_and_listed(page: Page, url: str, engine: FakeEngine) -> None:
    page.goto(url)
    wait_for(page, "#state", "Ready")
    page.fill("#prompt", "hi")
    page.fill("#temperature", "0.3")
    page.fill("#max-tokens", "30")
    page.keyboard.press("Control+Enter")  # in another field this does nothing
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    wait_for(page, "#measured", "ended")
    assert page.text_content("#answer") == "Hello, world!"
    assert str(page.text_content("#measured")).startswith("first token after ")
    _, params = engine.seen[-1]
    assert (params.temperature, params.max_tokens) == (0.3, 30)
    wait_for(page, "#recent tr", "finished")
    assert page.locator("#recent tr").count() == 1
    assert page.text_content("#hits") == "44 %"
    assert page.text_content("#acceptance") == "62 %"


def test_stop_gives_the_request_up(page: Page, url: str, engine: FakeEngine) -> None:
    engine.endless = True
    page.goto(url)
    wait_for(page, "#state", "Ready")
    page.fill("#prompt", "hi")
    page.click("#send")
    wait_for(page, "#answer", "Hello")
    page.click("#stop")
    wait_for(page, "#measured", "stopped")
    eventually(lambda: engine.given_up == 1)
    assert page.is_enabled("#send")
    wait_for(page, "#recent tr", "cancelled")


def test_a_refusal_is_shown(page: Page, url: str) -> None:
    page.goto(url)
    wait_for(page, "#state", "Ready")
    assert page.input_value("#max-tokens") == "32", "half of the model's length"
    page.fill("#prompt", "x" * 5000)
    page.click("#send")
    wait_for(page, "#measured.failed", "the prompt has")


def test_a_failure_is_shown_and_stays_when_the_server_has_ended(page: Page, model_path: Path) -> None:
    engine = FakeEngine()
    with serving(engine, model_path) as url:
        page.goto(url)
        wait_for(page, "#state", "Ready")
        engine.fail(RunError("stage 1 <b>has ended</b>"))
        wait_for(page, "#notice", "stage 1 <b>has ended</b>")
        assert page.is_disabled("#send")
        assert page.locator("#notice b").count() == 0
    wait_for(page, "#notice", "and has ended")
    assert page.text_content("#state") == "Failed"
    assert "stage 1" in str(page.text_content("#notice"))


def test_a_lost_connection_is_shown(page: Page, model_path: Path) -> None:
    with serving(FakeEngine(), model_path) as url:
        page.goto(url)
        wait_for(page, "#state", "Ready")
    wait_for(page, "#state", "No connection")
    assert page.is_disabled("#send")


def test_the_key_is_asked_for_and_kept_in_this_tab_alone(page: Page, model_path: Path) -> None:
    with serving(FakeEngine(), model_path, Settings(api_keys=("secret-key",))) as url:
        page.goto(url)
        wait_for(page, "#state", "Ready")
        assert page.is_hidden("#work")
        page.fill("#unlock-key", "wrong")
        page.keyboard.press("Enter")
        wait_for(page, "#unlock-error", "does not accept")
        page.fill("#unlock-key", "secret-key")
        page.keyboard.press("Enter")
        page.locator("#work").wait_for()
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        assert "secret-key" not in page.url
        page.fill("#prompt", "hi")
        page.click("#send")
        wait_for(page, "#answer", "Hello, world!")
        page.click("#forget")
        page.locator("#unlock").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


def test_hostile_names_ids_and_answers_stay_text(page: Page, model_path: Path) -> None:
    hostile = "</td><img/src=x/onerror=document.title='owned'><script>document.title='owned'</script>"
    engine = FakeEngine(answer=b"<img src=x onerror=alert(1)>")
    service = Service(cast(Engine, engine), Tokenizer(model_path), [hostile])
    engine.ready.set()
    service.load()
    with serving_app(service) as url:
        HTTP.post(f"{url}/v1/completions", json={"prompt": "hi"}, headers={"X-Request-Id": hostile})
        page.goto(url)
        wait_for(page, "#recent tr", "finished")
        assert page.text_content("#model") == hostile
        assert page.locator("#recent td").first.text_content() == hostile
        page.fill("#prompt", "hi")
        page.click("#send")
        wait_for(page, "#measured", "ended")
        assert page.text_content("#answer") == "<img src=x onerror=alert(1)>"
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
        assert page.title() == f"{hostile} · Loadmaster"


def test_nothing_is_asked_while_the_tab_is_hidden(page: Page, url: str) -> None:
    page.goto(url)
    wait_for(page, "#state", "Ready")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    show = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    show += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(show, True)
    page.wait_for_timeout(1500)  # a request that was under way may end
    del asked[:]
    page.wait_for_timeout(2500)
    assert asked == []
    with page.expect_request("**/status"):
        page.evaluate(show, False)


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_is_wider_than_the_window(page: Page, url: str, path: str, width: int) -> None:
    HTTP.post(f"{url}/v1/completions", json={"prompt": "hi"}, headers={"X-Request-Id": "i" * 128})
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(url + path)
    if path == "/":
        wait_for(page, "#recent tr", "finished")
    assert page.evaluate("document.documentElement.scrollWidth") == width
