"""Makes the page of a model and photos, or of the rows of an evaluation."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .._util.files import write_text
from .._util.images import ImageError, as_image, check_aspect, preprocessing_of, printable
from .._util.modules import uncompiled
from .._version import __version__
from ..caption import short_place
from ..evaluate.rows import PLAIN, Rows
from ..features import check_patches, feature_maps
from ..names import name_of
from ..positions import PositionViews
from ..viz.arrays import Floats, as_map, channels_first
from .encoding import Components, cosines_between, directions, encode, errors, link, principal_axes, second_moment
from .figures import FEWEST, Leakage
from .page import page_of
from .photo import ROWS, EncodedPhoto, encode_photo

COMPONENTS = 64
FEWEST_COMPONENTS, MOST_COMPONENTS = 32, 64
SHARED = 128  # dimensions
SAMPLED = 48  # patches of each photo that errors between photos are measured on
MOST_PHOTOS = 200
MOST_PATCHES = MOST_PHOTOS * 37 * 37  # of all photos, were they square: a page of 70 MB
HEIGHT = 900  # pixels of the frame in a notebook


class Explorer:
    """The page of some photos: add them one by one, then save it. In a notebook it shows itself.

    Args:
        facts: what the page says of model, head and sizes: title -> text.
        count: of the photos that will be added: the first two thirds fit the probe that leakage is measured with.
        components: of each map, 32..64; more make similarities nearer to the exact ones, fewer make a smaller page.

    Attributes:
        photos: those that were added.
        skipped: image that could not be read -> why.

    Raises:
        ValueError: if the number of components is out of range.
    """

    def __init__(self, facts: Mapping[str, str], count: int, components: int = COMPONENTS) -> None:
        if not FEWEST_COMPONENTS <= components <= MOST_COMPONENTS:
            raise ValueError(f"components must be {FEWEST_COMPONENTS}..{MOST_COMPONENTS}, got {components}")
        self.facts, self.components = dict(facts), components
        self.photos: list[EncodedPhoto] = []
        self.skipped: dict[str, str] = {}
        self._leakage = {row: Leakage(count) for row in ROWS}
        self._moments: dict[str, Floats] = {}  # of the directions of all photos, summed, [C, C]
        self._samples: list[tuple[NDArray[np.int64], dict[str, Floats]]] = []  # places and exact directions there

    def add(self, name: str, image: Image.Image, raw: Tensor | Floats, denoised: Tensor | Floats) -> None:
        """Add a photo.

        Args:
            name: as the page shows it.
            image: RGB, as the model saw it.
            raw: [h, w, C], [C, h, w] or [1, C, h, w].
            denoised: the same.

        Raises:
            ValueError: if a map is not finite or of another shape, or the two differ in shape.
        """
        maps = {"raw": as_map(raw), "denoised": as_map(denoised)}
        if maps["raw"].shape != maps["denoised"].shape:
            raise ValueError(f"raw and denoised map must have one shape, got {[m.shape for m in maps.values()]}")
        patches = {row: directions(fmap) for row, fmap in maps.items()}
        components = {row: self._encoded(row, each) for row, each in patches.items()}
        self.photos.append(encode_photo(name, image, maps, patches, components))
        chosen = np.random.default_rng(len(self.photos)).permutation(len(patches["raw"]))[:SAMPLED]
        self._samples.append((chosen, {row: each[chosen] for row, each in patches.items()}))
        for row, fmap in maps.items():
            self._leakage[row].add(torch.from_numpy(fmap))

    def _encoded(self, row: str, patches: Floats) -> Components:
        """Encode directions by axes that are a little those of the photos so far, too."""
        self._moments[row] = self._moments.get(row, 0.0) + second_moment(patches)
        return encode(patches, self._moments[row] / (len(self.photos) + 1), self.components)

    def html(self) -> str:
        """Make the page.

        Raises:
            ValueError: if there is no photo.
        """
        if not self.photos:
            raise ValueError("a page needs at least one photo that can be read; give others")
        shared = {row: principal_axes(moment, min(SHARED, len(moment))) for row, moment in self._moments.items()}
        facts = {**self.facts, **self._figures(shared), "dvt-timm": __version__}
        return page_of(facts, self.photos, shared)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all; its folder is made if need be.

        Raises:
            OSError: if it cannot be written.
            ValueError: if there is no photo.
        """
        target, text = Path(path), self.html()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)

    def _repr_html_(self) -> str:
        """Show the page in a notebook: in a frame of its own, so that its script runs and its style stays inside."""
        return (
            f'<iframe srcdoc="{html.escape(self.html())}" sandbox="allow-scripts allow-downloads" '
            f'title="Raw and denoised features" style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )

    def _figures(self, shared: Mapping[str, Floats]) -> dict[str, str]:
        """Say what was measured on the photos."""
        raw, denoised = (self._leakage[row].value() for row in ROWS)
        if raw is None or denoised is None:
            leakage = f"not measured: it takes {FEWEST} photos or more, there are {len(self.photos)}"
        else:
            leakage = f"R² {raw:.2f} raw, {denoised:.2f} denoised"
        removed = float(np.mean([photo.removed for photo in self.photos]))
        return {
            "position leakage": leakage,
            "removed": f"{100 * removed:.0f} % of the raw variance",
            "error of similarities": self._errors(shared),
            "components": f"{len(self.photos[0].components['raw'].steps)} a map",
        }

    def _errors(self, shared: Mapping[str, Floats]) -> str:
        """Say how far the page's similarities are from the exact ones."""
        usual, worst = (f"{max(photo.error[i] for photo in self.photos):.3f}" for i in (0, 1))
        usual += " within a photo"
        if len(self.photos) > 1:
            between = self._errors_between(shared)
            usual, worst = f"{usual}, {between[0]:.3f} between photos", f"{worst}, {between[1]:.3f}"
        return f"{usual} (999 of 1,000 are below; at worst {worst})"

    def _errors_between(self, shared: Mapping[str, Floats]) -> tuple[float, float]:
        """Measure the errors of cosines between each photo and the next one."""
        found, exact = [], []
        for i in range(len(self.photos)):
            j = (i + 1) % len(self.photos)
            for row in ROWS:
                one, other = self.photos[i].components[row], self.photos[j].components[row]
                links = link(one, shared[row]), link(other, shared[row])
                (drawn, patches), (of_other, others) = self._samples[i], self._samples[j]
                cosines = cosines_between(one, links[0], other, links[1])
                found.append(cosines[np.ix_(drawn, of_other)].ravel())
                exact.append((patches[row] @ others[row].T).ravel())
        return errors(np.concatenate(found), np.concatenate(exact))


def explorer(
    model: Any,
    images: Sequence[Image.Image | str | os.PathLike[str]],
    *,
    size: int | None = None,
    components: int = COMPONENTS,
    progress: bool = False,
) -> Explorer:
    """Make a page to explore the raw and denoised features of photos with.

    >>> page = explorer(model, ["cat.jpg", "puppy.jpg"])  # the last line of a notebook's cell shows it
    >>> page.save("page.html")

    Args:
        model: a denoised timm `VisionTransformer` or `Eva`, which takes images of any size.
        images: at most 200 images or their paths. What cannot be read is left out, and named in `skipped`.
        size: pixels of the shorter side, rounded to whole patches; the model's own by default.
        components: of each map, 32..64.
        progress: whether to show a bar.

    Raises:
        TypeError: if the model is no timm `VisionTransformer` or `Eva`.
        ValueError: if the model has no denoiser; if there are more than 200 images, or none that can be read; if
            the number of components is out of range, or images of that size make too many patches for the model or
            for a page.
    """
    inner = uncompiled(model)
    if getattr(inner, "denoiser", None) is None:
        raise ValueError("the model has no denoiser, so that nothing could be compared; dvt_timm.denoise puts one on")
    _check_count(len(images))
    _check_size(inner, preprocessing_of(inner, size).size, len(images))
    page = Explorer(_facts(inner, size), len(images), components)
    bar = tqdm(images, unit="photo", disable=None if progress else True)
    for number, (name, image) in enumerate(_read(bar, page.skipped), 1):
        preprocessing = preprocessing_of(inner, size)
        check_patches(inner, *preprocessing.size_of(image))
        seen = preprocessing.resize(image)
        with torch.inference_mode():
            maps = feature_maps(inner, preprocessing.to_tensor(seen))
        assert maps.denoised is not None
        page.add(name or f"photo {number}", seen, maps.raw, maps.denoised)
    return page


def explore_rows(rows: Rows, images: Sequence[Path], row: str | None = None) -> Explorer:
    """Make the page of what an evaluation compares: its plain maps, and those of a row.

    Args:
        rows: the model, and what is compared with it.
        images: at most 200 files. What cannot be read is left out, and named in `skipped`.
        row: the one that is shown beside the plain one; the first by default.

    Raises:
        ValueError: if there is no such row; if there are too many images, or none that can be read.
    """
    names = rows.names[1:]
    row = row or (names[0] if names else PLAIN)
    if row not in names:
        raise ValueError(f"nothing to show beside the plain row: no row {row!r} among {names}; add a denoiser")
    _check_count(len(images))
    shape = "squeezed to squares" if rows.squeeze else "the shorter side"
    facts = {"model": str(rows.settings["model"]), "head": row, "size": f"{rows.size} pixels, {shape}"}
    page = Explorer(facts, len(images))
    for name, image in _read(images, page.skipped):
        maps = rows.maps(image).rows
        height, width = maps[PLAIN].shape[:2]
        patch = rows.model.patch_embed.patch_size
        seen = image.resize((width * patch[1], height * patch[0]))
        page.add(name, seen, *(channels_first(maps[each]) for each in (PLAIN, row)))
    return page


def _read(
    images: Iterable[Image.Image | str | os.PathLike[str]], skipped: dict[str, str]
) -> Iterator[tuple[str, Image.Image]]:
    """Give names and RGB images of what can be read; note why others cannot. An image has no name."""
    for image in images:
        path = None if isinstance(image, Image.Image) else Path(image)
        try:
            upright = as_image(image)
            check_aspect(path or Path("image"), upright)
        except ImageError as error:
            skipped[str(image)] = str(error)
            continue
        yield "" if path is None else printable(path.name), upright


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST_PHOTOS:
        raise ValueError(f"a page takes 1..{MOST_PHOTOS} images, got {count}; choose some of them")


def _check_size(model: Any, size: int, count: int) -> None:
    """Raise ValueError if so many images of that size would make a page that no browser likes."""
    rows, columns = model.patch_embed.dynamic_feat_size((size, size))
    if rows * columns * count > MOST_PATCHES:
        raise ValueError(
            f"{count} images of {rows} x {columns} patches are too much for a page; take at most "
            f"{MOST_PATCHES // (rows * columns)} of them, or a smaller size"
        )


def _facts(model: Any, size: int | None) -> dict[str, str]:
    preprocessing, denoiser = preprocessing_of(model, size), model.denoiser
    if isinstance(denoiser, PositionViews):
        head = f"means over {denoiser.config['positions']} views of positions"
    else:
        head = "of no known source" if denoiser.source is None else short_place(denoiser.source.place)
    patch = " x ".join(map(str, dict.fromkeys(preprocessing.patch_size)))
    return {
        "model": name_of(model),
        "head": head,
        "size": f"{preprocessing.size} pixels, the shorter side; patches of {patch}, {model.embed_dim} channels",
    }
