"""Checkpoints: headers as columns, index, config, and stores that read byte ranges; on disk, on the hub, or behind https://.

Knows files and their formats, never a model or a rank. What is wrong with a checkpoint is returned as findings; an error
is raised only when there is no checkpoint to read.
"""

from loadmaster.checkpoint.causes import Causes
from loadmaster.checkpoint.columns import ShardFile
from loadmaster.checkpoint.fetch import fetch_model
from loadmaster.checkpoint.folder import Checkpoint, open_checkpoint
from loadmaster.checkpoint.hub import resolve_model
from loadmaster.checkpoint.index import Index
from loadmaster.checkpoint.model import open_model
from loadmaster.checkpoint.names import Names
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.store import LocalStore, Store
from loadmaster.checkpoint.table import Signature, TensorTable

__all__ = [
    "Causes",
    "Checkpoint",
    "Index",
    "LocalStore",
    "Names",
    "Origin",
    "ShardFile",
    "Signature",
    "Store",
    "TensorTable",
    "fetch_model",
    "open_checkpoint",
    "open_model",
    "resolve_model",
]
