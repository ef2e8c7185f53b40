"""How ranks communicate: along the stages (`group`), within a stage (`tensor`); and how a worker ends with its parent.

`lifeline` is about that end, and `peer` has the error of a rank whose neighbour ended. This module imports none of them: a
worker sets up `lifeline` before it imports torch, which takes seconds.
"""
