"""README and pages are true: code runs, commands, files and names exist, and the table is the manifest's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
from helpers import ROOT, serve_base
from hub_server import Hub
from timm.models import get_pretrained_cfg

import dvt_timm
from dvt_timm import evaluate, explore, offline, train, viz
from dvt_timm.cli.main import main
from dvt_timm.manifest import read_manifest

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
NAMES = TEXTS["docs/names.md"]
BLOCK = re.DOTALL | re.MULTILINE
FORMATS = {"voc_miou": ".2f", "ade20k_miou": ".2f", "nyu_rmse": ".4f"}

STRICT = """
import warnings, timm, torch, dvt_timm
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Use .content=", DeprecationWarning)  # huggingface_hub, uploading
"""
CHECKS = {
    "README.md": """
assert image.shape == (1, 3, 518, 686) and tokens.shape == (1, 1 + 37 * 49, 384)
assert maps.raw.shape == maps.denoised.shape == (1, 384, 37, 49)
torch.testing.assert_close(fmap, maps.denoised)
assert torch.equal(maps.class_token, tokens[:, 0]) and maps.register_tokens.shape[1] == 0
assert dense.patch_embed.grid_size == (73, 73)
assert [tuple(fmap.shape) for fmap in each] == [(1, 384, 16, 21), (1, 384, 17, 16)] and batch.shape == (2, 3, 224, 294)
assert half.shape == (2, 1 + 16 * 21, 384)
for twin in (mine, pulled):
    assert torch.equal(twin.denoiser.pos_embed.cpu(), model.denoiser.pos_embed.cpu())
assert mine.denoiser.source is not None
assert net.eval()(batch[..., :288]).shape == (2, 2, 224, 288)
assert clean.shape == (16, 16, 384)
""",
    "docs/index.md": """
assert whole.shape == (1, 3, 518, 686) and middle.shape == (1, 3, 518, 518)
assert maps.raw.shape == maps.denoised.shape == (1, 384, 37, 49)
assert [fmap.shape for fmap in wide] == [(1, 384, 24, 36)]
small = whole[:, :, :112, :112]
for twin in (mine, again):
    assert torch.equal(twin.eval().forward_features(small), model.forward_features(small))
assert torch.equal(plain.denoiser.pos_embed, model.denoiser.pos_embed)
assert "vit_small_patch14_dinov2.dvt_mine" in dvt_timm.list_variants(filter="*dinov2*")
assert picture.ndim == 3 and picture.dtype == "uint8"
assert [fmap.shape for fmap in every] == 12 * [(1, 384, 16, 16)]
assert type(ours) is dvt_timm.AveragedVisionTransformer
""",
    "docs/features.md": """
from dvt_timm.cli.main import main
assert main(["features", "examples/data", "--out", "sharded", "--shards", "1000", "--size", "28"]) == 0
assert {name: fmap.shape for name, fmap in denoised_maps("sharded")} == {"cat": (2, 3, 384), "puppy": (2, 2, 384)}
assert photo.path.name == "puppy.jpg" and photo.denoised.shape == (8, 8, 384)
""",
    "docs/hub.md": """
assert commit.oid
assert torch.equal(pulled.denoiser.pos_embed, model.denoiser.pos_embed)
small = torch.randn(1, 3, 112, 112)
assert torch.equal(merged.eval().forward_features(small), model.eval().forward_features(small))
""",
    "docs/offline.md": """
assert clean.shape == (8, 8, 384) and finer.shape == (64, 64, 384) and solution.raw.shape == (16, 16, 384)
torch.testing.assert_close(solution.raw, solution.semantics + solution.artifact + solution.residual)
assert skipped == {} and torch.equal(store.clean(0), clean)
""",
    "docs/train.md": """
assert torch.equal(mine.denoiser.pos_embed, dvt_timm.load_head("my-run").pos_embed)
""",
    "docs/pictures.md": """
assert panel.dtype == sheet.dtype == "uint8"
with Image.open("cat.png") as drawn:
    assert drawn.size == panel.shape[1::-1]
""",
    "docs/explorer.md": """
assert len(page.photos) == 2 and page.skipped == {}
assert "<iframe srcdoc=" in page._repr_html_()
""",
    "docs/evaluate.md": """
assert raw[0].shape == denoised[0].shape == (8, 11, 384)
assert len(predicted) == len(labels) == 8 * 11
""",
}


def code_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", TEXTS[page], BLOCK)


def commands() -> list[list[str]]:
    """Every command line of `dvt-timm` in a block or in the text, without its comment."""
    found = []
    for text in [*TEXTS.values(), (ROOT / "weights/demo/README.md").read_text()]:
        blocks = re.findall(r"^```\n(.*?)^```", re.sub(r"^```python\n.*?^```$", "", text, flags=BLOCK), BLOCK)
        lines = [line for block in blocks for line in block.splitlines() if line.startswith("dvt-timm ")]
        inline = re.findall(r"`(dvt-timm [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=BLOCK))
        found += [shlex.split(line, comments=True) for line in lines + inline]
    return found


def test_every_page_with_code_is_run() -> None:
    assert {page for page in PAGES if code_of(page)} == CHECKS.keys()


@pytest.mark.parametrize("folder", ["README.md", "docs"])
def test_code_blocks_run(folder: str, hub: Hub, tmp_path: Path) -> None:
    """In a process and a folder of their own: they register a name, write files, push to the tests' Hub and pull."""
    serve_base(hub, "vit_small_patch14_dinov2.lvd142m")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    pages = {page: "\n".join([*code_of(page), CHECKS[page]]) for page in CHECKS if page.startswith(folder)}
    runs = [f"exec(compile({code!r}, {page!r}, 'exec'), dict(globals()))" for page, code in pages.items()]
    code = "\n".join([STRICT, *runs])  # every page begins anew
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    helps: dict[str, str] = {}
    for _, command, *arguments in commands():
        if command.startswith("-"):
            continue
        words = [command, *(arguments[:1] if command == "evaluate" else [])]
        if words[-1] not in helps:
            with pytest.raises(SystemExit, match="0"):
                main([*words, "--help"])
            helps[words[-1]] = capsys.readouterr().out
        for option in (argument for argument in arguments if argument.startswith("--") and argument != "--help"):
            assert re.search(rf"{option}\b", helps[words[-1]]), (command, option)
    assert {"features", "fit", "train", "distill", "list", "push", "convert", "weights", "artifacts"} <= helps.keys()


def test_names_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`dvt-timm list --markdown > docs/names.md` writes the page anew."""
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out == NAMES


@pytest.mark.parametrize("variant", read_manifest()["variants"], ids=lambda variant: variant["name"])
def test_table_of_names(variant: dict[str, Any]) -> None:
    arch, _, tag = variant["name"].partition(".")
    base = variant["base"]
    rows = [row for row in NAMES.splitlines() if row.startswith(f"| `{arch}.") and f".{tag}`" in row]
    (row,) = [row for row in rows if "embedded" in row or base.partition(".")[2] in row]
    assert get_pretrained_cfg(base).license in row
    if "repo" in variant:
        assert f"| {'ViT' if variant.get('distilled') else 'head'}, `{variant['file']}` |" in row
    if "figures" not in variant:
        assert "->" not in row
        return
    raw = read_manifest()["bases"][base]["figures"]
    for key, spec in FORMATS.items():
        before, after = ("-" if value is None else format(value, spec) for value in (raw[key], variant["figures"][key]))
        assert f"| {before} -> {after} |" in row


@pytest.mark.parametrize("page", PAGES)
def test_every_name_exists(page: str) -> None:
    known = timm.list_models(include_tags=True)
    for name in re.findall(r"[`\"]((?:vit|deit3|eva02)_\w+\.\w+)[`\"]", TEXTS[page]):
        assert name.endswith("_mine") or name in known


@pytest.mark.parametrize("page", PAGES)
def test_links_scripts_and_make_targets_exist(page: str) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", TEXTS[page]):
        assert (PAGES[page].parent / link).exists(), link
    for script in re.findall(r"\b((?:examples|tests|weights)/[\w/]+\.\w+)", TEXTS[page]):
        assert (ROOT / script).exists(), script
    for script, measure in re.findall(r"python (examples/benchmarks/\w+\.py) ([a-z][a-z-]*)", TEXTS[page]):
        assert f'"{measure}"' in (ROOT / script).read_text(), (script, measure)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", TEXTS[page], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_commit(page: str) -> None:
    assert not [word for word in re.findall(r"\b[0-9a-f]{7,40}\b", TEXTS[page]) if re.search("[a-f]", word)]


def test_sizes() -> None:
    """The README can be read, and the page that every user gets is short."""
    assert len((ROOT / "README.md").read_bytes()) <= 10_240
    assert len((ROOT / "weights/demo/README.md").read_text().splitlines()) <= 50


@pytest.mark.parametrize(
    "room", [dvt_timm, offline, train, evaluate, evaluate.data, explore, viz], ids=lambda room: room.__name__
)
def test_public_names_are_in_the_api(room: ModuleType) -> None:
    shown = set(re.findall(r"^::: [\w.]+\.(\w+)$", TEXTS["docs/api.md"], re.MULTILINE))
    rooms = {"data", "evaluate", "explore", "offline", "train", "viz"}
    assert {name for name in room.__all__ if not name.startswith("__")} - rooms <= shown
