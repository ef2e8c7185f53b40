"""Takes the guides' pictures of the pages that `plan --html` and `fit --html` write, of models of full size without bytes.

    python -m tools.report_images

Needs Chromium (Debian: apt-get install chromium) and playwright. Writes ``docs/guides/images``, and prints how long each page
takes to its first paint.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

from loadmaster.cli.main import main as loadmaster
from loadmaster.synth import PRESETS, write_full_size
from tools.page_images import IMAGES, launch

MTP = ("--speculative-config", '{"method": "mtp"}')
FIT = ("fit", "--devices", "H100x16", "--engine", "vllm", "--max-model-len", "32k", *MTP)
MOST_BYTES = 150_000
"""The largest picture that the documents may have."""


@dataclass(frozen=True)
class Picture:
    """A picture of what a command writes of a model. ``size`` are the pixels of the window."""

    name: str
    model: str
    command: tuple[str, ...]
    size: tuple[int, int]
    scheme: Literal["light", "dark"] = "light"


PICTURES = (
    Picture("plan.png", "GLM-5.1-FP8", ("plan", "-pp", "8", "--device-memory", "140GiB", *MTP), (1240, 830)),
    Picture(
        "plan-512-ranks.png",
        "GLM-5.1-FP8",
        ("plan", "-pp", "8", "-tp", "8", "-dp", "8", "-ep", "--engine", "vllm", "--device-memory", "80GiB"),
        (1240, 880),
        "dark",
    ),
    Picture("fit.png", "DeepSeek-V3", FIT, (1240, 670)),
    Picture("fit-phone.png", "DeepSeek-V3", FIT, (400, 860), "dark"),
)


def main() -> int:
    """Write the pages and take the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright)
        for picture in PICTURES:
            take(picture, browser, Path(folder))
        browser.close()
    return 0


def take(picture: Picture, browser: Browser, folder: Path) -> None:
    """Write one page and take its picture.

    Raises:
        SystemExit: the command failed, or the picture is too large.
    """
    model, page_file = folder / picture.model, folder / "page.html"
    if not model.exists():
        write_full_size(PRESETS[picture.model.lower()], model)
    command, *options = picture.command
    with contextlib.redirect_stdout(io.StringIO()):
        if loadmaster([command, str(model), *options, "--html", str(page_file)]):
            raise SystemExit(f"{picture.name}: `loadmaster {' '.join(picture.command)}` failed")
    width, height = picture.size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=picture.scheme)
    page.goto(page_file.as_uri())
    image = IMAGES / picture.name
    page.screenshot(path=image)
    painted_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.close()
    sizes = f"{image.stat().st_size:,} bytes, of a page of {page_file.stat().st_size:,}"
    print(f"{picture.name}: {sizes}, painted after {painted_ms:.0f} ms", file=sys.stderr)
    if image.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{picture.name}: more than {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
