"""Drafts a family for a model that has none: a plug-in package made from headers and config, with every guess marked.

From stored names to a package: `encoded` finds the shapes of MLX's and bitsandbytes' weights, `stored` groups the tensors of the
layers, `dims` finds the config keys that equal their
sizes, `roles` says what a tensor is and how ranks divide it, `layers` finds the rule for the kinds of layers, `draft` puts
them together, `source` writes them as Python, `package` writes the files. What is not certain becomes a question.
"""

from loadmaster.describe.draft import Draft, draft_family
from loadmaster.describe.package import judge, shapes_in_transformers, write_package

__all__ = ["Draft", "draft_family", "judge", "shapes_in_transformers", "write_package"]
