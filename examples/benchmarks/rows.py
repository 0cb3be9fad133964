"""Maps of photos by the rows of a table: raw features, the embedded head, heads in folders, stage 1 of any kind.

Rows are

    raw                          the backbone's features
    head, head:FOLDER            the same through the embedded head, or another one
    KIND:VIEWS                   F of stage 1 with so many views of a kind, by the solver that goes with it
    KIND@SHIFT:VIEWS             with jitter's shift, or positions' shortest side
    KIND:VIEWS/mean              the mean of the aligned views
    KIND:VIEWS/OPTION            the closed form with
        smoothN                  smoothness N, also behind the others: slow3+smooth8
        priorN                   `prior_views` N
        sharedN                  the same, pulled to the `shared_artifact` of the calibrating images (--calibrate)
        slowN                    a G that holds none of its N slowest waves a side
        without                  no G at all

All rows of one kind come from one set of views, the first ones of those of the row with most. Maps are kept on disk as
float16, by what they depend on, the planted position embedding included, so that a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from photos import MODEL, aligned_mean, kept, subset
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import dvt_timm
from dvt_timm.offline import ImageFitter, LeastSquaresSolver, MeanSolver, Views, sample_views, shared_artifact
from dvt_timm.offline.grid_field import Basis
from dvt_timm.offline.normal_equations import Layout, data_matrix, factorized
from dvt_timm.offline.run import fingerprint
from dvt_timm.offline.solution import collect

RAW, HEAD = "raw", "head"
SMOOTH = r"smooth[\d.]+"
WAY = re.compile(rf"mean|{SMOOTH}|(prior[\d.]+|shared[\d.]+|slow\d+|without)(\+{SMOOTH})?")
STAGE_1 = re.compile(
    r"(?P<kind>jitter\+positions|jitter|crops|positions)(@(?P<range>[\d.]+))?:(?P<views>\d+)(/(?P<way>\S+))?"
)


@dataclass(frozen=True)
class Row:
    """A row of stage 1."""

    kind: str
    range: float | None
    num_views: int
    way: str | None

    @property
    def family(self) -> tuple[str, float | None]:
        """What its views are."""
        return self.kind, self.range

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `sample_views`."""
        if self.range is None:
            return {"kind": self.kind}
        return {
            "kind": self.kind,
            **({"sides": (self.range, 1.0)} if self.kind == "positions" else {"shift": self.range}),
        }


def parsed(row: str) -> Row | None:
    """A row of stage 1; None for features and heads."""
    if row == RAW or row.partition(":")[0] == HEAD:
        return None
    match = STAGE_1.fullmatch(row)
    positions = match is not None and match["kind"] == "positions"
    if match is None or (match["way"] and (positions or not WAY.fullmatch(match["way"]))):
        raise SystemExit(f"{row} is no row; see the top of rows.py")
    shift = match["range"]
    if shift and match["kind"] == "crops":
        raise SystemExit(f"{row}: crops have no shift")
    return Row(match["kind"], float(shift) if shift else None, int(match["views"]), match["way"])


class Rows:
    """Maps of images by row, as the model is at that moment; each computed once."""

    def __init__(
        self,
        rows: Sequence[str],
        folder: Path,
        size: int,
        autocast: torch.dtype,
        calibration: Sequence[Image.Image | Path] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.autocast = folder, size, autocast
        self.model = timm.create_model(MODEL, pretrained=True, num_classes=0, img_size=size).eval()
        self.weights = fingerprint(self.model)
        self.rows = {row: parsed(row) for row in rows}
        self.heads = {
            row: dvt_timm.load_head(row.partition(":")[2]).eval() if ":" in row else self.model.denoiser
            for row in (HEAD, *rows)
            if row.partition(":")[0] == HEAD
        }
        self.calibration = calibration
        self.shared: dict[str, Tensor] = {}  # by views and position embedding
        self.ways: dict[str, Callable[[Views], Tensor]] = {}
        self.family: Any = None  # whose ways are at hand: each holds a factor of up to 0.3 GB

    def method(self, row: str) -> Callable[[Any, Sequence[Image.Image]], Iterator[Tensor]]:
        """A row as `evaluate.planted` takes it."""
        return lambda _, photos: (self(row, photo) for photo in photos)

    def __call__(self, row: str, image: Image.Image) -> Tensor:  # [h, w, C]
        stage_1 = self.rows[row] if row in self.rows else parsed(row)
        if stage_1 is None:
            raw = self._kept(RAW, image, lambda: self._raw(image))
            with torch.inference_mode():
                return raw if row == RAW else self.heads[row](raw[None])[0]
        if not self._file(row, image).exists():
            self._fill(stage_1, image)
        return load_file(self._file(row, image))["features"].float()

    def _kept(self, row: str, image: Image.Image, compute: Callable[[], Tensor]) -> Tensor:
        return kept(self._file(row, image), compute)

    def _file(self, row: str, image: Image.Image) -> Path:
        digest = hashlib.sha256(f"{self.weights} {row} {self.size} {self.autocast} {image.size}".encode())
        digest.update(self.model.pos_embed.detach().numpy().tobytes())
        digest.update(image.tobytes())
        if "shared" in row:
            digest.update(" ".join(map(str, self.calibration)).encode())
        return self.folder / f"{digest.hexdigest()[:20]}.safetensors"

    @torch.inference_mode()
    def _raw(self, image: Image.Image) -> Tensor:
        pixels = dvt_timm.preprocess(self.model, image.resize((self.size, self.size)), self.size)
        return dvt_timm.feature_maps(self.model, pixels).raw[0].permute(1, 2, 0)

    def _fill(self, wanted: Row, image: Image.Image) -> None:
        """Compute all rows of a family."""
        family = {row: r for row, r in self.rows.items() if r is not None and r.family == wanted.family}
        most = max(row.num_views for row in family.values())
        stream = sample_views(
            self.model, image, size=self.size, num_views=most, autocast=self.autocast, **wanted.options
        )
        views = collect(stream)
        if self.family != wanted.family:
            self.ways, self.family = {}, wanted.family
        for name, row in family.items():
            if self._file(name, image).exists():
                continue
            part = subset(views, row.num_views)
            if name not in self.ways:
                self.ways[name] = way(row, part.xy)
            if "shared" in (row.way or ""):
                shared = self._shared(row)
                part = Views(part.features - shared, part.xy)
            self._kept(name, image, lambda fit=self.ways[name], part=part: fit(part))

    def _shared(self, row: Row) -> Tensor:  # [h, w, C]
        """What the calibrating images share as the model is now; to pull to it is to take it off and pull to 0."""
        if not self.calibration:
            raise SystemExit(f"{row.kind}:{row.num_views}/{row.way} needs --calibrate DIR, a folder of photos")
        key = (
            f"{row.family} {row.num_views} "
            + hashlib.sha256(self.model.pos_embed.detach().numpy().tobytes()).hexdigest()
        )
        if key not in self.shared:
            options = {"size": self.size, "num_views": row.num_views, "autocast": self.autocast, **row.options}
            self.shared[key] = shared_artifact(ImageFitter(self.model, **options), self.calibration)
        return self.shared[key]


def way(row: Row, xy: Tensor) -> Callable[[Views], Tensor]:
    """From views at xy to F."""
    if row.kind == "positions":
        return lambda views: MeanSolver().fit(views).semantics
    if row.way == "mean":
        return aligned_mean
    options = dict(re.findall(r"([a-z]+)([0-9.]*)", row.way or ""))
    smoothness, prior = float(options.get("smooth", 1)), float(options.get("prior", options.get("shared", 0)))
    h, w = xy.shape[1:3]
    if "without" in options or "slow" in options:
        return without_waves(xy, waves(h, w, int(options.get("slow") or max(h, w))), smoothness)
    prepared = LeastSquaresSolver(smoothness=smoothness, prior_views=prior).prepare(xy)
    return lambda views: prepared.fit(views).semantics


def waves(h: int, w: int, most: int) -> Tensor:
    """The slowest cosines over the patches, so many each way, without the constant: [h * w, k], orthonormal."""
    down, across = (
        torch.cos(torch.pi * (torch.arange(n) + 0.5)[:, None] * torch.arange(min(most, n)) / n) for n in (h, w)
    )
    both = (down[:, None, :, None] * across[None, :, None, :]).reshape(h * w, -1)[:, 1:].double()
    return both / both.norm(dim=0)


def without_waves(xy: Tensor, modes: Tensor, smoothness: float) -> Callable[[Views], Tensor]:
    """The closed form with a G that has no part along `modes` [P, k].

    Only F at the patches of the whole image is wanted, which is one product with the sides of the system.
    """
    layout = Layout(xy.flatten(1, 2), (2 * xy.shape[1] + 1, 2 * xy.shape[2] + 1))
    V, P = layout.xy.shape[:2]
    along = modes.T @ layout.per_patch  # [k, K]
    solve = factorized(data_matrix(layout) + along.T @ along / V, layout.nodes, smoothness)
    places = Basis.at(xy[-1].reshape(-1, 2), layout.nodes, torch.float64).dense()  # [P, K]
    level = layout.per_view.sum(dim=0) / (V * P)
    read = solve((places - level).T).T.float()  # [P, K]
    over_views, over_patches = layout.per_patch.float(), layout.per_view.float()
    basis = layout.basis.to(torch.float32)

    def fit(views: Views) -> Tensor:
        y = views.features.flatten(1, 2)
        reference = y[-1].mean(dim=0)
        y = y - reference
        per_patch, per_view, total = y.mean(dim=0), y.mean(dim=1), y.mean(dim=(0, 1))
        sides = basis.scatter(y.flatten(0, 1)) - over_views.T @ (per_patch - total) - over_patches.T @ per_view
        sides += (along.T @ (modes.T @ per_patch.double())).float()
        return (read @ sides + reference + total).reshape(*xy.shape[1:3], -1)

    return fit
