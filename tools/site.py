"""Builds the documentation as a site, and checks that every link in it leads somewhere.

    python -m tools.site [--out .cache/site]

Pages are the Markdown files of the repository, at the same paths; a file that a page links to is copied as well, and a folder
without a page of its own gets one that lists its files. So a link means the same here and in the repository. MkDocs and its
theme make the site (`mkdocs.yml`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.docs import markdown
from tests.docs.markdown import ROOT

PAGES = ROOT / ".cache" / "site-pages"

NAV: list[dict[str, str | list[str]]] = [
    {"Loadmaster": "README.md"},
    {"中文": "README.zh-CN.md"},
    {"Guides": ["docs/index.md", "docs/guides/tutorial.md", "docs/guides"]},
    {"Concepts": ["docs/concepts", "ARCHITECTURE.md"]},
    {"Reference": ["docs/reference"]},
    {"Why": ["docs/decisions", "docs/audits", "benchmarks/README.md"]},
    {"Taking part": ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]},
]
"""The menu. A folder stands for its pages that are not named before it, in the order of their names."""


def stage() -> None:
    """Copy the pages to `PAGES`, and the files that they link to; make a page of each folder that has none."""
    shutil.rmtree(PAGES, ignore_errors=True)
    waiting, done, folders = markdown.pages(), set[Path](), set[Path]()
    for picture in (ROOT / "docs").rglob("*.png"):  # some are shown by HTML, for light and dark pages
        _copy(picture)
    while waiting:
        page = waiting.pop()
        if page in done:
            continue
        done.add(page)
        _copy(page)
        folders.add(page.parent)
        for target in linked(page):
            if target.is_dir():
                folders.add(target)
            elif target.suffix == ".md":
                waiting.append(target)
            elif target.is_file():
                _copy(target)
    for folder in sorted(folders):
        if not any((folder / name).exists() for name in ("README.md", "index.md")):
            _list(folder)


def linked(page: Path) -> list[Path]:
    """Return the files and folders of the repository that a page links to."""
    local = [link for link in markdown.read(page).links if "://" not in link and not link.startswith("#")]
    return [(page.parent / unquote(link.partition("#")[0])).resolve() for link in local]


def _copy(file: Path) -> None:
    to = PAGES / file.relative_to(ROOT)
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def _list(folder: Path) -> None:
    """Write the page of a folder: its pages by their titles, and the names of its other files."""
    lines = [f"# All of {folder.relative_to(ROOT)}", ""]
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        lines.append(f"- [{_title(file)}]({file.name})" if file.suffix == ".md" else f"- `{file.name}`")
    to = PAGES / folder.relative_to(ROOT)
    to.mkdir(parents=True, exist_ok=True)
    (to / "index.md").write_text("\n".join(lines) + "\n")


def _title(page: Path) -> str:
    """Return a page's first heading; the name of a file that has none."""
    first = next((line for line in page.read_text().splitlines() if line.startswith("# ")), page.name)
    return first.removeprefix("# ")


def menu() -> list[dict[str, object]]:
    """Return `NAV` with folders replaced by their pages."""
    entries: list[dict[str, object]] = []
    for entry in NAV:
        for title, pages in entry.items():
            listed = pages if isinstance(pages, str) else [p for name in pages for p in _under(name)]
            entries.append({title: listed if isinstance(listed, str) else list(dict.fromkeys(listed))})
    return entries


def _under(name: str) -> list[str]:
    if name.endswith(".md"):
        return [name]
    return [str(f.relative_to(PAGES)) for f in sorted((PAGES / name).glob("*.md"))]


class _Links(HTMLParser):
    """Collects what a page links to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.anchors.add(value)


def _parse(page: Path) -> _Links:
    parser = _Links()
    parser.feed(page.read_text())
    return parser


def broken(site: Path) -> list[str]:
    """Return the links of a built site that lead nowhere, each with its page. Links to other sites are not followed."""
    parsed = {page: _parse(page) for page in site.rglob("*.html")}
    found = []
    for page, links in parsed.items():
        for link in dict.fromkeys(links.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            fragment = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{page.relative_to(site)}: {link}")
            elif fragment and target in parsed and fragment not in parsed[target].anchors:
                found.append(f"{page.relative_to(site)}: {link} (no such heading)")
    return found


def build(out: Path) -> list[str]:
    """Build the site in ``out``, and return its broken links.

    Raises:
        SystemExit: MkDocs failed.
    """
    stage()
    config = PAGES.parent / "mkdocs.yml"
    folders = {"docs_dir": str(PAGES), "site_dir": str(out.resolve())}
    config.write_text(json.dumps({"INHERIT": str(ROOT / "mkdocs.yml"), **folders, "nav": menu()}))  # JSON is YAML
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", str(config)]
    done = subprocess.run(
        command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )  # the theme's word about its successor
    if done.returncode:
        raise SystemExit(done.returncode)
    return broken(out)


def main() -> int:
    """Build the site, and print broken links."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGES.parent / "site")
    args = parser.parse_args()
    links = build(args.out)
    print("\n".join(links) or f"{args.out / 'index.html'}: every link leads somewhere")
    return 1 if links else 0


if __name__ == "__main__":
    sys.exit(main())
