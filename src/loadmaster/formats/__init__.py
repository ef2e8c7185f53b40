"""How values are encoded: every quantisation format is a table of components and grains.

Data, not code: nothing else in the package knows a format's geometry. What the bytes mean numerically is carried out
where tensors are touched (`loadmaster.loader` for loading, `loadmaster.layers` for products).
"""

from loadmaster.formats.table import Component, Format, Grain, fp8_block

__all__ = ["Component", "Format", "Grain", "fp8_block"]
