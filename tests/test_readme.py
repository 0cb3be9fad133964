"""The README is true: its code runs, its table is the manifest's, its files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from helpers import ROOT, serve_base
from hub_server import Hub
from timm.models import get_pretrained_cfg

from dvt_timm.manifest import published_variants, read_manifest

README = (ROOT / "README.md").read_text()
FORMATS = {"voc_miou": ".2f", "ade20k_miou": ".2f", "nyu_rmse": ".4f"}


CHECKS = """
assert tokens.shape == (1, 1 + 37 * 37, 384) and fmap.shape == (1, 384, 37, 37)
assert [fmap.shape for fmap in wide] == [(1, 384, 24, 36)]
assert dense.patch_embed.grid_size == (73, 73)
small = image[:, :, :112, :112]
for twin in (mine, again, merged):
    assert torch.equal(twin.eval().forward_features(small), model.forward_features(small))
assert torch.equal(pulled.denoiser.pos_embed, model.denoiser.pos_embed)
assert commit.oid
assert clean.shape == (16, 16, 384) and finer.shape == (64, 64, 384)
torch.testing.assert_close(solution.raw, clean + solution.artifact + solution.residual)
"""


def test_code_blocks_run(hub: Hub, tmp_path: Path) -> None:
    """In a process and a folder of their own: they register a name, write files, push to the tests' Hub and pull."""
    serve_base(hub, "vit_small_patch14_dinov2.lvd142m")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    strict = "import warnings, timm, torch, dvt_timm; warnings.simplefilter('error')"
    client = "warnings.filterwarnings('ignore', 'Use .content=', DeprecationWarning)  # huggingface_hub, uploading"
    code = "\n".join([strict, client, *blocks, CHECKS])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variant", published_variants().values(), ids=lambda variant: variant.name)
def test_table_of_names(variant) -> None:
    rows = [row for row in README.splitlines() if row.startswith(f"| `{variant.arch}.") and f".{variant.tag}`" in row]
    (row,) = [row for row in rows if "embedded" in row or variant.base.partition(".")[2] in row]
    assert get_pretrained_cfg(variant.base).license in row
    if variant.repo is not None:
        assert f"| {'ViT' if variant.distilled else 'head'}, `{variant.file}` |" in row
    if variant.figures is None:
        assert "->" not in row
        return
    raw = read_manifest()["bases"][variant.base]["figures"]
    for key, spec in FORMATS.items():
        before, after = ("-" if value is None else format(value, spec) for value in (raw[key], variant.figures[key]))
        assert f"| {before} -> {after} |" in row


def test_every_name_of_the_readme_exists() -> None:
    for name in re.findall(r"`(vit_\w+\.\w+)`|\"(vit_\w+\.\w+)\"", README):
        name = name[0] or name[1]
        if not name.endswith("_mine"):
            assert name in timm.list_models(include_tags=True), name


def test_links_and_make_targets_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        if target not in ("do", "of"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
