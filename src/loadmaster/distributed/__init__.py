"""Processes that belong together: how stages agree and hand tensors on; and how none is left behind."""

from loadmaster.distributed.group import PeerLostError, PipelineGroup

__all__ = ["PeerLostError", "PipelineGroup"]
