"""How stages communicate: the pipeline of sockets between them (`group`), and how a worker ends with its parent (`lifeline`).

`peer` has the error of a stage whose neighbour ended. This module imports none of them: a worker sets up `lifeline` before it
imports torch, which takes seconds.
"""
