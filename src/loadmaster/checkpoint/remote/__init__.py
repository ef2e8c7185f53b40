"""Checkpoints that are not on disk: on the hub, behind https://, in an object store. Only small files and headers are read.

Each place is a `RemoteFiles`; `RemoteFolder` makes it a source that opens like a folder.
"""
