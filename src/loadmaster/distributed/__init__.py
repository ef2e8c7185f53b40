"""How stages communicate: the pipeline of sockets between them (`group`), and how a worker ends with its parent (`lifeline`).

This module imports neither: a worker sets up `lifeline` before it imports torch, which takes seconds.
"""
