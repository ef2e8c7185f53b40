"""What an engine's own loaders make of sound and defective checkpoints, and what should be made of that.

    loadmaster audit vllm

`cases` says what is loaded, `damage` what is done to it before, `run` has each loaded in a process of its own (`isolate`,
`attempt`) and `verdict` judges what was observed there, against parameters that `reference` makes without the engine.
`notes` is what reading the engine's code showed of the causes, and `report` puts it all on a page.
"""
