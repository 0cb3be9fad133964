"""Stage 1 of Denoising Vision Transformers (arXiv 2401.02957): one image's features taken apart."""

from .least_squares import LeastSquaresSolver, PreparedSolver
from .solution import Decomposition, Views
from .views import sample_views

__all__ = ["Decomposition", "LeastSquaresSolver", "PreparedSolver", "Views", "sample_views"]
