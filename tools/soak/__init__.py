"""A soak of the server: clients that stream, leave, send garbage, time out and come back. ``python -m tools.soak``."""
