"""Stage 1 of Denoising Vision Transformers (arXiv 2401.02957): one image's features taken apart.

>>> decomposition = offline.fit_image(model, "photo.jpg")  # any timm ViT or Eva
>>> decomposition.semantics, decomposition.artifact, decomposition.residual  # [h, w, C] each

`sample_views` takes features of many views of an image, `LeastSquaresSolver` (closed form, the default) and
`NeuralFieldSolver` (as released) separate what they share. `fit_store` does it for many images, `open_store` reads what
it wrote.
"""

from .._util.errors import RunError
from .._util.images import ImageError
from .._util.team import Team
from .calibration import shared_artifact
from .coords import image_grid
from .fit import ImageFitter, Solver, ViewPairs, fit_image
from .least_squares import LeastSquaresSolver, PreparedSolver
from .mean import MeanSolver
from .neural_field import NeuralFieldSolver
from .run import fit_store
from .solution import Decomposition, Views, unexplained
from .store import FeatureStore, open_store
from .views import ViewStream, sample_views

__all__ = [
    "Decomposition",
    "FeatureStore",
    "ImageError",
    "ImageFitter",
    "LeastSquaresSolver",
    "MeanSolver",
    "NeuralFieldSolver",
    "PreparedSolver",
    "RunError",
    "Solver",
    "Team",
    "ViewPairs",
    "ViewStream",
    "Views",
    "fit_image",
    "fit_store",
    "image_grid",
    "open_store",
    "sample_views",
    "shared_artifact",
    "unexplained",
]
