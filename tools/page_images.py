"""Takes the guide's pictures of the server's page: while a tiny model loads, slowed down, and under load.

    python -m tools.page_images

Needs Chromium (Debian: apt-get install chromium) and playwright. Writes ``docs/guides/images``. `tools.report_images` takes
those of plans.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import uvicorn
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.engine import Capacity, Engine, Tokenizer
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.server.address import listen
from loadmaster.server.app import build_app
from loadmaster.server.service import Service
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.workers.builder import PlanBuilder, Stage

IMAGES = Path(__file__).parents[1] / "docs" / "guides" / "images"
NUM_CLIENTS = 12
LOADING_S = 30.0
UNDER_LOAD_S = 40.0
PROMPT = "Which ranks read this tensor, and who needs it?"


class SlowBuilder(PlanBuilder):
    """Builds the stage at once, and reports its bytes bit by bit; each rank a little more slowly than the last."""

    def build(
        self, rank: int, device: str, on_progress: Callable[[int], None], group: TensorGroup | None = None
    ) -> Stage:
        """Load ``rank``; see `PlanBuilder.build`."""
        sizes: list[int] = []
        stage = super().build(rank, device, sizes.append, group)
        parts = 100
        for part in range(parts):
            time.sleep(LOADING_S / parts * (1 + rank / 8))
            on_progress(sum(sizes) * (part + 1) // parts - sum(sizes) * part // parts)
        return stage


def main() -> None:
    """Start the server, take both pictures, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "glm-tiny"
        write_tiny(PRESETS["glm-5.1-fp8"], model)
        layout = ParallelLayout(2, 2, num_draft_layers=1)
        plan = prove(build_plan(open_checkpoint(model), layout, dtype="F32")).require_proven()
        capacity = Capacity(max_num_seqs=8, num_gpu_blocks_override=128)
        with Engine(plan, capacity=capacity, builder="tools.page_images:SlowBuilder") as engine:
            take(Service(engine, Tokenizer(model), ["glm-tiny"]))


def take(service: Service) -> None:
    """Serve, and take the pictures."""
    bound = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_config=None, lifespan="off"))
    threads = [threading.Thread(target=server.run, kwargs={"sockets": [bound]}), threading.Thread(target=service.load)]
    for thread in threads:
        thread.start()
    IMAGES.mkdir(exist_ok=True)
    stop = threading.Event()
    try:
        with sync_playwright() as playwright:
            browser = launch(playwright)
            page = browser.new_page(viewport={"width": 1200, "height": 380}, color_scheme="light")
            page.goto(url)
            half = page.locator("#loading-share").filter(has_text=re.compile("^[4-9][0-9] %"))
            half.wait_for(timeout=300e3)
            save(page, "loading.png")
            page.locator("#work").wait_for(timeout=300e3)
            clients = [threading.Thread(target=ask, args=(url, number, stop)) for number in range(NUM_CLIENTS)]
            for client in clients:
                client.start()
            page.fill("#prompt", PROMPT)
            page.wait_for_timeout(UNDER_LOAD_S * 1000)
            page.set_viewport_size({"width": 1200, "height": 840})
            save(page, "load.png")
            stop.set()
            browser.close()
    finally:
        stop.set()
        server.should_exit = True
        service.close()
        for thread in threads:
            thread.join()


def launch(playwright: Playwright) -> Browser:
    """Start Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=program, args=arguments)


def save(page: Page, name: str) -> None:
    """Take one picture."""
    page.screenshot(path=IMAGES / name)
    print(f"{name}: {(IMAGES / name).stat().st_size:,} bytes", file=sys.stderr)


def ask(url: str, number: int, stop: threading.Event) -> None:
    """Ask again and again, as one client. Every fifth request is given up before its answer."""
    prompt = "The same beginning, which is in the cache. " * 3 + f"Client {number}."
    count = 0
    while not stop.is_set():
        count += 1
        timeout = 0.3 if (count + number) % 5 == 0 else 60
        headers = {"X-Request-Id": f"client-{number}-{count}"}
        body = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, "seed": count}
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=timeout)


if __name__ == "__main__":
    main()
