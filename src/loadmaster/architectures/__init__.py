"""Model families as tables, and the algebra that turns them into expressions over stored tensors.

A family is three tables: its schema (logical tensors), its spelling (how a checkpoint names them) and its target (what
the running engine makes of them). Nothing here imports torch, reads a file or sees a rank.
"""
