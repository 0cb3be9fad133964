"""Measures of features.

`position_leakage` and `information_coefficients` measure artifacts without labels. `linear_probe` and `knn_probe`
predict labels of patches, and `mean_iou` scores them. `plant` lets a model carry a known artifact of position, whose
removal `artifact_left`, `distance_to_truth` and `won_back` measure against the truth.
"""

from .leakage import position_leakage
from .mic import information_coefficients
from .planting import artifact_left, distance_to_truth, plant, won_back
from .probes import knn_probe, linear_probe, mean_iou

__all__ = [
    "artifact_left",
    "distance_to_truth",
    "information_coefficients",
    "knn_probe",
    "linear_probe",
    "mean_iou",
    "plant",
    "position_leakage",
    "won_back",
]
