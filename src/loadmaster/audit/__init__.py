"""Tests an engine's own loaders with sound and defective checkpoints, and judges the results.

    loadmaster audit vllm

`cases` lists the checkpoints and `damage` their defects. `run` loads each in a separate process (`isolate`, `attempt`) on a
rank that `ranks` simulates. `verdict` judges what was observed, against parameters that `reference` makes without the engine.
`notes` holds the causes that reading the engine's code showed, and `report` writes the page.
"""
