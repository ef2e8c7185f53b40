"""Every relative link of the documents leads somewhere, and every page can be found."""

from pathlib import Path

import pytest

from tests.docs import markdown
from tests.docs.markdown import ROOT, parse

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in markdown.pages()]


def local_links(page: Path) -> list[tuple[str, Path, str]]:
    """Return the links of a page that stay in the repository: as written, the path, and the anchor or nothing."""
    found = []
    for link in markdown.read(page).links:
        if "://" not in link and not link.startswith("mailto:"):
            path, _, anchor = link.partition("#")
            found.append((link, (page.parent / path).resolve() if path else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page: Path) -> None:
    for link, target, anchor in local_links(page):
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert target.exists(), f"{link}: there is no {target.relative_to(ROOT)}"
        if anchor:
            assert anchor in markdown.read(target).anchors, f"{link}: no such heading"


def test_every_page_of_docs_can_be_reached_from_its_index() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page.is_dir():  # shown as a list of its files
            waiting += page.glob("*.md")
        elif page.suffix == ".md" and page.exists() and page not in reached:
            reached.add(page)
            waiting += [target for _, target, _ in local_links(page)]
    assert set(ROOT.glob("docs/**/*.md")) - reached == set()


def test_anchors_are_those_that_github_makes() -> None:
    text = (
        "# The `plan` command\n## Stages, ranks & axes\n## [Link](x.md) it\n## It\n## It\n```bash\n# no heading\n```\n"
    )
    anchors = {"the-plan-command", "stages-ranks--axes", "link-it", "it", "it-1"}
    assert parse(text).anchors == anchors


def test_links_in_code_are_not_links() -> None:
    assert parse("[a](b.md) and `[c](d.md)`\n```text\n[e](f.md)\n```\n").links == ("b.md",)
