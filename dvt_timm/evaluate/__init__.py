"""Measures of features.

`position_leakage` and `information_coefficients` measure artifacts without labels. `linear_probe` and `knn_probe`
predict labels of patches, and `mean_iou` scores them; `match_points` finds key points in other photos. `plant` lets a
model carry a known artifact of position, whose removal `artifact_left`, `distance_to_truth` and `won_back` measure
against the truth; `planted` does all of it for ways of denoising, on photos. `backdrops` measures how much maps vary
where a photo has nothing. `PositionProjection` is the baseline of all denoisers, found in a minute.
"""

from ..projection import PositionProjection
from .backdrops import backdrops, far_patches, on_backdrop
from .estimates import Estimate
from .keypoints import match_points
from .leakage import position_leakage
from .mic import information_coefficients
from .planting import artifact_left, distance_to_truth, plant, won_back
from .probes import knn_probe, linear_probe, mean_iou, patch_labels
from .truth import LabelScores, Method, Planted, planted

__all__ = [
    "Estimate",
    "LabelScores",
    "Method",
    "Planted",
    "PositionProjection",
    "artifact_left",
    "backdrops",
    "distance_to_truth",
    "far_patches",
    "information_coefficients",
    "knn_probe",
    "linear_probe",
    "match_points",
    "mean_iou",
    "on_backdrop",
    "patch_labels",
    "plant",
    "planted",
    "position_leakage",
    "won_back",
]
