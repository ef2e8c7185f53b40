"""The OpenAI-compatible API over an engine.

serve(Service(engine, tokenizer, names), listen("127.0.0.1", 8000))
"""

from loadmaster.runtime.address import listen
from loadmaster.server.app import build_app
from loadmaster.server.serve import serve
from loadmaster.server.service import Service

__all__ = ["Service", "build_app", "listen", "serve"]
