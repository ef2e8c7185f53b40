"""Whether what running needs is installed: the extra ``loadmaster[run]``. Planning goes without."""

from __future__ import annotations

from importlib.util import find_spec

from loadmaster.errors import UnsupportedError

RUNNING = ("torch", "transformers", "tokenizers")
SERVING = ("fastapi", "jinja2", "uvicorn")


def require_run_extra(*, serving: bool = False) -> None:
    """Refuse to go on without it, before anything is planned; only ``serving`` needs the server's packages.

    Raises:
        UnsupportedError: names what is missing.
    """
    missing = [name for name in (*RUNNING, *(SERVING if serving else ())) if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"running a model needs {', '.join(missing)}, which this environment lacks",
            hint="pip install 'loadmaster[run]'",
        )
