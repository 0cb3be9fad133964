"""Pictures of feature maps: tensors or arrays in, arrays out.

A feature map is [C, h, w], [1, C, h, w] or [h, w, C], of one image. Four axes are never ambiguous. Three are read with
the channels first if the first axis is at least 64 long and longer than both others, with the channels last otherwise.
An image is a PIL image, or [H, W, 3], [3, H, W] or [1, 3, H, W] in 0..255, uint8.
"""

from .arrays import FeatureMap, ImageLike, Pixels
from .clusters import kmeans_labels, matched_labels
from .compare import check_columns, decomposition_panel, feature_panel
from .maps import colorize, norm_map, pca_rgb, pca_rows, salient_patch, similarity
from .sheet import contact_sheet, progress_strip, progress_tile

__all__ = [
    "FeatureMap",
    "ImageLike",
    "Pixels",
    "check_columns",
    "colorize",
    "contact_sheet",
    "decomposition_panel",
    "feature_panel",
    "kmeans_labels",
    "matched_labels",
    "norm_map",
    "pca_rgb",
    "pca_rows",
    "progress_strip",
    "progress_tile",
    "salient_patch",
    "similarity",
]
