"""A page to explore raw and denoised features with: one file that needs neither a server nor a network.

`explorer` makes it of a model and photos, `explore_rows` of the rows of an evaluation. What they return has `save`, and
shows itself in a notebook.
"""

from .explorer import Explorer, explore_rows, explorer

__all__ = ["Explorer", "explore_rows", "explorer"]
