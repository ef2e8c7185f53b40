"""Chromium, as the tests of the server's page have it."""

from tests.server.page.conftest import browser, page

__all__ = ["browser", "page"]
