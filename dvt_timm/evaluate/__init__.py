"""Whether denoising helps: tasks on benchmarks and on photos of one's own, and the measures that they are made of.

A task (`artifacts`, `segmentation`, `linear_segmentation`, `depth`, `correspondence`, `propagation`, `discovery`) takes
`Rows`, a model with what is to be compared with it, and data (`evaluate.data`), and gives a `Report`. Measures are
functions of arrays:

- artifacts without labels: `position_leakage`, `information_coefficients`, `largest_coefficients`;
- labels of patches: `knn_probe`, `linear_probe`, `mean_iou`, `patch_labels`;
- key points: `match_points`; videos: `propagate`, `region_similarity`, `boundary_accuracy`; objects: `lost`;
- with a truth: `plant` lets a model carry a known artifact, whose removal `artifact_left`, `distance_to_truth` and
  `won_back` measure; `planted` does all of it for ways of denoising. `backdrops` measures what varies where a photo has
  nothing.

`PositionProjection` is the baseline of all denoisers, found in a minute.
"""

from ..projection import PositionProjection
from . import data
from .backdrops import backdrops, far_patches, on_backdrop
from .cache import MapCache
from .depth_probe import DepthConfig
from .estimates import Estimate
from .keypoints import match_points
from .leakage import position_leakage
from .mic import information_coefficients, largest_coefficients
from .objects import is_located, lost
from .planting import artifact_left, distance_to_truth, plant, won_back
from .probes import knn_probe, linear_probe, mean_iou, patch_labels
from .report import Measure, Report
from .rows import Maps, Rows
from .segmentation_probe import SegmentationConfig
from .tasks.artifacts import artifacts
from .tasks.correspondence import correspondence
from .tasks.depth import depth
from .tasks.discovery import discovery
from .tasks.pixels import linear_segmentation
from .tasks.propagation import propagation
from .tasks.segmentation import segmentation
from .truth import LabelScores, Method, Planted, planted
from .videos import boundary_accuracy, masks_of, propagate, region_similarity, soft_labels

__all__ = [
    "DepthConfig",
    "Estimate",
    "LabelScores",
    "MapCache",
    "Maps",
    "Measure",
    "Method",
    "Planted",
    "PositionProjection",
    "Report",
    "Rows",
    "SegmentationConfig",
    "artifact_left",
    "artifacts",
    "backdrops",
    "boundary_accuracy",
    "correspondence",
    "data",
    "depth",
    "discovery",
    "distance_to_truth",
    "far_patches",
    "information_coefficients",
    "is_located",
    "knn_probe",
    "largest_coefficients",
    "linear_probe",
    "linear_segmentation",
    "lost",
    "masks_of",
    "match_points",
    "mean_iou",
    "on_backdrop",
    "patch_labels",
    "plant",
    "planted",
    "position_leakage",
    "propagate",
    "propagation",
    "region_similarity",
    "segmentation",
    "soft_labels",
    "won_back",
]
