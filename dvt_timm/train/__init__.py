"""Stages 2 and 3 of Denoising Vision Transformers: train a denoiser head, distill it into its backbone.

    dvt-timm fit PHOTOS --model NAME --out STORE
    dvt-timm train --store STORE --out RUN
    dvt-timm distill --base NAME --denoiser RUN --images PHOTOS --out RUN2

Needs the extra `train`.
"""

from .config import TrainConfig
from .data import OnlinePairs
from .denoiser import DenoiserStage
from .distill import DistillStage
from .loop import RunInterruptedError
from .loss import feature_losses
from .run import distill, make_accelerator, train_denoiser

__all__ = [
    "DenoiserStage",
    "DistillStage",
    "OnlinePairs",
    "RunInterruptedError",
    "TrainConfig",
    "distill",
    "feature_losses",
    "make_accelerator",
    "train_denoiser",
]
