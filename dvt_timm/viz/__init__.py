"""Pictures of feature maps: tensors or arrays in, arrays out.

A feature map is [C, h, w], [1, C, h, w] or [h, w, C], of one image. Four axes are never ambiguous. Three are read with
the channels first if the first axis is at least 64 long and longer than both others, with the channels last otherwise.
An image is a PIL image, or [H, W, 3], [3, H, W] or [1, 3, H, W] in 0..255, uint8.
"""

from .arrays import FeatureMap, ImageLike, Pixels
from .clusters import kmeans_labels
from .maps import colorize, decomposition_panel, feature_panel, norm_map, pca_rgb, similarity

__all__ = [
    "FeatureMap",
    "ImageLike",
    "Pixels",
    "colorize",
    "decomposition_panel",
    "feature_panel",
    "kmeans_labels",
    "norm_map",
    "pca_rgb",
    "similarity",
]
