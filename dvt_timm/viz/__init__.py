"""Pictures of feature maps: arrays in, arrays out."""

from .maps import colorize, decomposition_panel, feature_panel, kmeans_labels, norm_map, pca_rgb, similarity

__all__ = ["colorize", "decomposition_panel", "feature_panel", "kmeans_labels", "norm_map", "pca_rgb", "similarity"]
