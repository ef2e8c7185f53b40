"""Processes that belong together: how stages find each other, agree, and hand tensors on; and how none is left behind."""

from loadmaster.distributed.group import PeerLostError, PipelineGroup, join_store, loopback_store

__all__ = ["PeerLostError", "PipelineGroup", "join_store", "loopback_store"]
