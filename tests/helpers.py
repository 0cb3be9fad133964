"""What several tests need: small models of every family, their plain twins, and where the golden data lies."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import timm
import torch
from hub_server import Hub
from PIL import Image
from safetensors.torch import save
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

import dvt_timm
from dvt_timm.offline import ImageFitter, LeastSquaresSolver

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LARGE_GOLDEN = ROOT.parent / "shared" / "golden"  # the same at the size of real heads, where it is at hand
DEMO = "vit_small_patch14_dinov2.dvt_demo"

# heads of the authors' code: (width, grid, blocks), and the folder of what was recorded
GOLDEN_HEADS = {
    name: (arguments, folder)
    for name, arguments, folder in (
        ("d64_g9_b1", (64, (9, 9), 1), GOLDEN),
        ("d128_g6_b2", (128, (6, 6), 2), GOLDEN),
        ("d128_g37_b1", (128, (37, 37), 1), LARGE_GOLDEN),
        ("d192_g32_b2", (192, (32, 32), 2), LARGE_GOLDEN),
    )
    if folder.is_dir()
}

# one name of every family, and its base
FAMILIES = {
    "vit_small_patch14_dinov2.dvt": "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.dvt": "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_giant_patch14_dinov2.dvt": "vit_giant_patch14_dinov2.lvd142m",
    "deit3_base_patch16_224.dvt": "deit3_base_patch16_224.fb_in1k",
    "vit_base_patch16_clip_384.dvt": "vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
    "eva02_base_patch16_clip_224.dvt": "eva02_base_patch16_clip_224.merged2b",
    "vit_base_patch16_224.dvt_dino": "vit_base_patch16_224.dino",
    "vit_base_patch16_224.dvt_mae": "vit_base_patch16_224.mae",
    "vit_base_patch16_384.dvt_augreg": "vit_base_patch16_384.augreg_in21k_ft_in1k",
    "vit_small_patch8_224.dvt_dino": "vit_small_patch8_224.dino",
}
VIT, EVA = "vit_small_patch14_dinov2.dvt", "eva02_base_patch16_clip_224.dvt"
SMALL = {"depth": 3, "embed_dim": 128, "num_heads": 2}


def create(name: str, **kwargs: Any) -> Any:
    """A small model of a family, seeded, in evaluation mode."""
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def create_pair(name: str, **kwargs: Any) -> tuple[Any, Any]:
    """A denoised model and the plain one of the same base weights; every block and norm matters in them."""
    denoised = create(name, **kwargs)
    plain = create(FAMILIES[name], **{"dynamic_img_size": True, **kwargs})
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if "gamma" in key or "norm" in key:  # LayerScale and norms start near 0 and at 1
                parameter.copy_(torch.rand_like(parameter) + 0.5 * key.endswith("weight"))
    missing, unexpected = denoised.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(key.startswith("denoiser.") for key in missing)
    return denoised, plain


def random_head(dim: int = 128, grid_size: tuple[int, int] = (5, 4), seed: int = 1) -> dvt_timm.DenoiserHead:
    torch.manual_seed(seed)
    return dvt_timm.DenoiserHead(dim, grid_size).eval()


def images(height: int = 56, width: int = 70, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(7))


def size_of(name: str) -> tuple[int, int]:
    """A small, non-square image size that the patches of a family divide."""
    return (56, 70) if "patch14" in name else (64, 80) if "patch16" in name else (32, 40)


def head_of(model: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The head on the patch tokens [B, prefix + H * W, C] of a plain model's forward_features: [B, H * W, C]."""
    patches = tokens[:, model.num_prefix_tokens :]
    return model.denoiser(patches.reshape(len(patches), *grid, -1)).flatten(1, 2)


def perturb(head: nn.Module) -> None:
    """Change every parameter of a head."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


TINY = "test_vit.r160_in1k"  # the smallest ViT of timm: 64 channels, 10 x 10 patches of 16 pixels


def serve_base(hub: Hub, name: str = TINY, **options: Any) -> Any:
    """Put random weights of a timm name where timm looks for them; the model that has them."""
    torch.manual_seed(3)
    model = timm.create_model(name, **options)
    repo = get_pretrained_cfg(name).hf_hub_id
    hub.repo(repo, {"config.json": b"{}", "model.safetensors": save(model.state_dict())})
    return model.eval()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def serve_head(hub: Hub, folder: Path, repo: str = "me/head", **options: Any) -> dvt_timm.DenoiserHead:
    """A repository of a head for the tiny base, as push_to_hub makes it."""
    head = random_head(64, (5, 4))
    hub.repo(repo, files_of(dvt_timm.save_head(head, folder, base=TINY)), **options)
    return head


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def blobs(cache: Path) -> list[Path]:
    """What the client has in its cache, finished or not."""
    return sorted(path for path in cache.glob("models--*/blobs/*") if path.is_file())


@contextmanager
def full_disk(size: int = 20_000) -> Iterator[None]:
    """The kernel refuses files beyond a size in bytes, as it refuses all on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def photo(seed: int = 0) -> Image.Image:
    """Smooth random colors."""
    noise = np.random.default_rng(seed).integers(0, 255, size=(6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((150, 120), Image.Resampling.BICUBIC)


def fitter(**options: Any) -> ImageFitter:
    torch.manual_seed(0)
    model = timm.create_model(TINY, dynamic_img_size=True).eval()
    return ImageFitter(model, LeastSquaresSolver(), **{"num_views": 3, "size": 64, "batch_size": 4, **options})


def photos(folder: Path, count: int = 5, first: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(first, first + count):
        noise = np.random.default_rng(i).integers(0, 255, size=(4, 5, 3), dtype=np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(noise).resize((80, 64)).save(paths[-1])
    return paths


@contextmanager
def without_override(place: Path, mode: int) -> Iterator[None]:
    """The mode of a file or folder counts, for the superuser too: this thread lays down what lets it read all."""
    before, capabilities = place.stat().st_mode, (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, capabilities) == 0
    effective = capabilities[0]
    capabilities[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, capabilities) == 0
    place.chmod(mode)
    try:
        yield
    finally:
        place.chmod(before)
        capabilities[0] = effective
        assert libc.capset(header, capabilities) == 0


class Hurried:
    """`time` without its waits, which are noted down."""

    waited: ClassVar[list[float]] = []

    @classmethod
    def sleep(cls, seconds: float) -> None:
        cls.waited.append(seconds)
