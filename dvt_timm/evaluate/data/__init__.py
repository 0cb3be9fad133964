"""The benchmarks' folders as map-style data sets, in the layouts that they ship with.

A task takes anything else with `__len__` and `__getitem__` that gives the same items.
"""

from .boxes import Located, VocBoxes
from .davis import DavisVideos, Video
from .masks import AdeMasks, FolderMasks, Labeled, VocMasks, open_masks
from .nyu import Frame, NyuDepth
from .spair import Pair, SpairPairs

__all__ = [
    "AdeMasks",
    "DavisVideos",
    "FolderMasks",
    "Frame",
    "Labeled",
    "Located",
    "NyuDepth",
    "Pair",
    "SpairPairs",
    "Video",
    "VocBoxes",
    "VocMasks",
    "open_masks",
]
