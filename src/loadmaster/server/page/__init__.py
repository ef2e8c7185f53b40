"""The server's pages: what it does at ``/``, and its API at ``/docs``. They need no network but the server itself.

The files in ``assets`` are put together into one document for each page. Server text reaches the first page as JSON, and
becomes text nodes alone; the second is written with every value escaped, and has no script.
"""

from loadmaster.server.page.routes import add_pages

__all__ = ["add_pages"]
