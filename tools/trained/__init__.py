"""Trains demo/glm, a small model of GLM-5.1's architecture: ``python -m tools.trained TEXTS OUT``, on one GPU.

Needs torch, safetensors and tokenizers, and nothing of the package: the model here is an implementation of its own, against
which the package's can be tested. TEXTS holds the two public-domain texts (`tools.trained.text`).
"""
