"""Stage 1 from views that move the positions and leave the picture: their mean.

Letters: V views, h x w patches, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .coords import places_in_image
from .solution import Decomposition, Views


@dataclass(frozen=True)
class MeanSolver:
    """F is the mean over views of kind "positions", each brought to the level of the plain pass; nothing is solved."""

    def fit(self, views: Iterable[Views]) -> Decomposition:
        """Take an image's features apart.

        Args:
            views: `Views`, or batches of them (`sample_views(kind="positions")`); the last view is the plain pass.

        Returns:
            The decomposition: semantics are the mean, the artifact is what it lacks of `raw`, the residual is 0.

        Raises:
            ValueError: if there are fewer than two views, they show different places, or features are not finite.
        """
        total, count, last, xy = None, 0, None, None  # of the views before the last
        for batch in views:
            xy = batch.xy[0] if xy is None else xy
            if not torch.equal(batch.xy, xy.expand_as(batch.xy)):
                raise ValueError('the mean is of views that show one place each: sample them with kind="positions"')
            seen = batch.features if last is None else torch.cat([last[None], batch.features])
            aligned = (seen[:-1].float() - seen[:-1].float().mean(dim=(1, 2), keepdim=True)).sum(dim=0)
            total = aligned if total is None else total + aligned
            count, last = count + len(seen) - 1, seen[-1]
        if total is None or last is None or xy is None or count < 1:
            raise ValueError(
                f"stage 1 compares views and needs at least 2, got {count + (last is not None)}; sample some"
            )
        return _decomposition(last.float().clone(), total / count, xy, count + 1)


def _decomposition(raw: Tensor, centered: Tensor, xy: Tensor, num_views: int) -> Decomposition:
    semantics = centered + raw.mean(dim=(0, 1))
    if not bool(semantics.isfinite().all()):
        raise ValueError("features hold NaN or Inf; compute them in float32, or check the model's weights")
    low, high = xy[0, 0].to(raw), xy[-1, -1].to(raw)  # (x, y) of the outermost patches

    def semantics_at(places: Tensor) -> Tensor:
        position = (places_in_image(places).to(raw) - low) / (high - low).clamp(min=1e-12) * 2 - 1  # [N, 2] in [-1, 1]
        plane = semantics.permute(2, 0, 1)[None]  # [1, C, h, w]
        read = grid_sample(plane, position[None, None], mode="bilinear", padding_mode="border", align_corners=True)
        return read[0, :, 0].T.reshape(*places.shape[:-1], -1)

    stats = {"solver": "mean", "num_views": num_views}
    return Decomposition(raw, semantics, raw - semantics, torch.zeros_like(raw), stats, semantics_at)
