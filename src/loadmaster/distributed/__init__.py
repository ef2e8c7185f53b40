"""Processes that belong together: how stages agree and hand tensors on (`group`); and how none is left behind (`lifeline`).

This imports neither: a worker asks for its end with its parent's before it imports torch, which takes seconds.
"""
