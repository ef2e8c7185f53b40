"""Adapters that put `loadmaster.needed` in front of other loaders of safetensors files, one module for each loader.

Each yields the stored tensors that a rank needs something of, whole, and reads little else. Filters that are made from names
alone get this wrong: they have dropped copies of experts, or scales beside packed values. A plan knows what a rank's parameters
are made of.
"""
