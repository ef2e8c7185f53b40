"""Plans, layouts that fit, and differences as one HTML file to look at: stages, ranks, layers and bytes as people draw them.

The file needs nothing but itself. Whatever comes from the checkpoint is escaped, and the file's own policy lets a browser run
its one script and nothing else.
"""

from loadmaster.report.html.difference import checkpoint_difference_html, layout_difference_html
from loadmaster.report.html.fit import fit_html
from loadmaster.report.html.plan import plan_html

__all__ = ["checkpoint_difference_html", "fit_html", "layout_difference_html", "plan_html"]
