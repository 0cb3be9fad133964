"""Measures of features; no model is run here.

`position_leakage` and `information_coefficients` measure artifacts without labels. `linear_probe` and `knn_probe`
predict labels of patches, and `mean_iou` scores them.
"""

from .leakage import position_leakage
from .mic import information_coefficients
from .probes import knn_probe, linear_probe, mean_iou

__all__ = ["information_coefficients", "knn_probe", "linear_probe", "mean_iou", "position_leakage"]
