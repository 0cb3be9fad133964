"""AnomalyDINO of anomalib on a denoised backbone: scratched wheels found after a look at six whole ones.

    pip install '.[clients]' && python examples/anomaly_dino.py

anomalib takes the name as it is, once `import dvt_timm` has registered it. The pictures are drawn here: a cog wheel at
eighteen places and angles, six times with a scratch. The score of a picture is the cosine distance of its oddest
patches from those of six whole wheels. Takes 25 seconds of processor time. The embedded backbone is a stand-in: what
comes out says nothing about DINOv2, nor whether denoising helps to find anomalies.
"""

import math
import tempfile
from pathlib import Path

import anomalib
import numpy as np
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.metrics import AUROC, Evaluator
from anomalib.models import AnomalyDINO
from PIL import Image, ImageDraw

import dvt_timm

NAME = "vit_small_patch14_dinov2.dvt_demo"
SIDE = 252  # pixels, to which AnomalyDINO resizes; 18 x 18 patches
GROUND, BRASS, BORE, SCRATCH = (96, 104, 112), (190, 160, 90), (60, 50, 40), (235, 235, 240)


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: tuple[int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def polar(x: float, y: float, radius: float, angle: float) -> tuple[float, float]:
    return x + radius * math.cos(angle), y + radius * math.sin(angle)


def wheel(seed: int, scratched: bool) -> tuple[Image.Image, Image.Image]:
    """A wheel somewhere near the middle, and where it is scratched, white on black."""
    dice = np.random.default_rng(seed)
    noise = dice.normal(GROUND, 6, (SIDE, SIDE, 3)).astype(np.uint8)
    image, mask = Image.fromarray(noise), Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    x, y = SIDE / 2 + dice.uniform(-10, 10, 2)
    turned = dice.uniform(0, math.tau)
    for tooth in range(12):
        disc(draw, *polar(x, y, 78, turned + tooth * math.tau / 12), 14, BRASS)
    disc(draw, x, y, 76, BRASS)
    disc(draw, x, y, 22, BORE)
    if scratched:
        middle, angle = polar(x, y, dice.uniform(30, 60), dice.uniform(0, math.tau)), dice.uniform(0, math.pi)
        line = [polar(*middle, reach, angle) for reach in (-22, 22)]
        draw.line(line, SCRATCH, width=6)
        ImageDraw.Draw(mask).line(line, 255, width=6)
    return image, mask


def draw_wheels(root: Path) -> Folder:
    """Six whole wheels to learn, six more and six scratched ones to tell apart."""
    for folder in ("train", "whole", "scratched", "masks"):
        (root / folder).mkdir()
    for i in range(18):
        image, mask = wheel(i, scratched=i >= 12)
        image.save(root / ("train", "whole", "scratched")[i // 6] / f"{i:02}.png")
        if i >= 12:
            mask.save(root / f"masks/{i:02}.png")
    return Folder(
        "wheels",
        root=root,
        normal_dir="train",
        normal_test_dir="whole",
        abnormal_dir="scratched",
        mask_dir="masks",
        val_split_mode="same_as_test",
        num_workers=0,
    )


def judge(wheels: Folder, results: Path, denoised: bool) -> str:
    """One row of the table."""
    metrics = [
        AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
        AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
    ]
    model = AnomalyDINO(
        encoder_name=NAME, evaluator=Evaluator(test_metrics=metrics), post_processor=False, visualizer=False
    )
    if not denoised:
        dvt_timm.undenoise(model.model.feature_encoder.feature_extractor)
    engine = Engine(
        default_root_dir=results,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model=model, datamodule=wheels)
    (measured,) = engine.test(model=model, datamodule=wheels, verbose=False)
    scores: dict[bool, list[float]] = {False: [], True: []}
    for batch in engine.predict(model=model, datamodule=wheels):
        for label, score in zip(batch.gt_label, batch.pred_score, strict=True):
            scores[bool(label)].append(score.item())
    spans = " | ".join(f"{min(of):.3f} to {max(of):.3f}" for of in scores.values())
    areas = " | ".join(f"{measured[name]:.3f}" for name in ("image_AUROC", "pixel_AUROC"))
    return f"| {'denoised' if denoised else 'raw'} | {spans} | {areas} |"


with tempfile.TemporaryDirectory() as folder:
    wheels = draw_wheels(Path(folder))
    print(f"AnomalyDINO of anomalib {anomalib.__version__} on {NAME}")
    print("| features | whole wheels | scratched wheels | image AUROC | pixel AUROC |\n| --- | --- | --- | --- | --- |")
    for denoised in (False, True):
        print(judge(wheels, Path(folder) / "results", denoised), flush=True)
