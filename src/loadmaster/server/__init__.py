"""The OpenAI-compatible API over an engine.

from loadmaster.server.serve import serve
from loadmaster.server.service import Service

serve(Service(engine, tokenizer, names), listen("127.0.0.1", 8000))

This module imports nothing: an address (`loadmaster.server.address`) is bound before the server's packages are imported.
"""
