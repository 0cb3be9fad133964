"""The names in timm's registry, and that nothing else in timm changes."""

import importlib
import json
import subprocess
import sys
import warnings
from typing import Any

import pytest
import timm
import torch
from helpers import random_head
from timm.models import get_pretrained_cfg

import dvt_timm
from dvt_timm import DenoiserHead, names, registry
from dvt_timm.manifest import Published, published_variants, read_manifest

TABLE = """
vit_small_patch14_dinov2        lvd142m                  dvt dvt_voc dvt_demo
vit_large_patch14_dinov2        lvd142m                  dvt dvt_voc
vit_base_patch14_dinov2         lvd142m                  dvt dvt_in1k dvt_in1k_distilled dvt_voc dvt_voc_distilled
vit_small_patch14_reg4_dinov2   lvd142m                  dvt dvt_voc
vit_large_patch14_reg4_dinov2   lvd142m                  dvt dvt_voc
vit_base_patch14_reg4_dinov2    lvd142m                  dvt dvt_voc dvt_voc_distilled
deit3_base_patch16_224          fb_in1k                  dvt dvt_voc dvt_voc_distilled
vit_base_patch16_clip_384       laion2b_ft_in12k_in1k    dvt dvt_voc dvt_voc_distilled
eva02_base_patch16_clip_224     merged2b                 dvt dvt_voc dvt_voc_distilled
vit_base_patch16_224            dino                     dvt_dino dvt_dino_voc dvt_dino_voc_distilled
vit_base_patch16_224            mae                      dvt_mae dvt_mae_voc dvt_mae_voc_distilled
vit_base_patch16_384            augreg_in21k_ft_in1k     dvt_augreg dvt_augreg_voc dvt_augreg_voc_distilled
vit_giant_patch14_dinov2        lvd142m                  -dvt
vit_giant_patch14_reg4_dinov2   lvd142m                  -dvt
vit_small_patch16_224           dino                     -dvt_dino
vit_small_patch8_224            dino                     -dvt_dino
vit_base_patch8_224             dino                     -dvt_dino
vit_large_patch16_224           mae                      -dvt_mae
vit_huge_patch14_224            mae                      -dvt_mae
vit_base_patch16_clip_224       openai                   -dvt_openai
"""
NAMES: dict[str, tuple[str, bool]] = {}  # name -> (base, has published weights)
for line in TABLE.strip().splitlines():
    arch, base_tag, *tags = line.split()
    for tag in tags:
        NAMES[f"{arch}.{tag.lstrip('-')}"] = (f"{arch}.{base_tag}", not tag.startswith("-"))

SNAPSHOT = """
import dataclasses, json, socket, sys, time, warnings
import timm, timm.models
from timm.models import get_pretrained_cfg, list_models, list_modules, model_entrypoint, is_model_pretrained
from timm.models import _registry as registry

def snapshot(ours=()):
    state = {}
    for arch in list_models():
        entrypoint = model_entrypoint(arch)
        module = sys.modules[entrypoint.__module__]
        cfg = get_pretrained_cfg(arch)
        default = getattr(module, "default_cfgs", {}).get(arch)
        state[arch] = [
            entrypoint.__name__, entrypoint.__module__, entrypoint.__doc__, callable(getattr(module, arch)),
            getattr(timm.models, arch).__name__, is_model_pretrained(arch),
            repr(cfg), [t for t in default.tags if f"{arch}.{t}" not in ours] if default else None,
            {t: repr(c) for t, c in default.cfgs.items() if f"{arch}.{t}" not in ours} if default else None,
            registry._model_to_module[arch],
        ]
        for tag in (default.tags if default else ()):
            if tag and f"{arch}.{tag}" not in ours:
                state[f"{arch}.{tag}"] = repr(get_pretrained_cfg(f"{arch}.{tag}"))
    state["modules"] = {m: sorted(list_models(module=m)) for m in list_modules()}
    state["exports"] = {m: sys.modules[f"timm.models.{m}"].__all__[:] for m in list_modules()}
    state["pretrained"] = [n for n in list_models(pretrained=True) if n not in ours]
    state["tagged"] = [n for n in list_models(include_tags=True) if n not in ours]
    state["deprecated"] = sorted(registry._deprecated_models)
    return state
"""


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_stays_as_it_was() -> None:
    """Every plain name, before and after; no warning, no network, again on a second registration and a reload."""
    output = run_python(
        SNAPSHOT
        + """
before = snapshot()
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
with warnings.catch_warnings():
    warnings.simplefilter("error")
    import dvt_timm
    ours = set(dvt_timm.list_variants())
    first = snapshot(ours)
    import importlib
    from dvt_timm import registry as ours_registry
    ours_registry.register_published()
    importlib.reload(ours_registry)
    importlib.reload(dvt_timm)
    second = snapshot(ours)
assert before == first, [k for k in before if before[k] != first.get(k)]
assert before == second, [k for k in before if before[k] != second.get(k)]
assert set(list_models(pretrained=True)) - set(before["pretrained"]) == set(dvt_timm.list_variants(pretrained=True))
assert set(list_models(include_tags=True)) - set(before["tagged"]) == ours
entrypoint = model_entrypoint("vit_small_patch14_dinov2")
assert not hasattr(entrypoint._plain, "_plain")
print(json.dumps(len(before)))
"""
    )
    assert json.loads(output) > 1000


def test_import_is_cheap() -> None:
    """What is heavy, and what is seldom needed, stays out."""
    output = run_python(
        "import timm, sys; before = set(sys.modules); import dvt_timm; print(*sorted(set(sys.modules) - before))"
    )
    heavy = {"accelerate", "matplotlib", "PIL.ImageDraw", "onnx", "tensorboard", "transformers"}
    seldom = {f"dvt_timm.{name}" for name in ("cli", "evaluate", "offline", "train", "viz")}
    assert "dvt_timm.registry" in output.split()
    assert not (heavy | seldom) & set(output.split())


def test_table_of_names() -> None:
    assert set(NAMES) == set(dvt_timm.list_variants())
    assert len(NAMES) == 43
    assert {name for name, (_, published) in NAMES.items() if published} == set(dvt_timm.list_variants(pretrained=True))
    for variant in published_variants().values():
        assert variant.base == NAMES[variant.name][0]
        assert variant.distilled == variant.name.endswith("_distilled")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_configuration(name: str) -> None:
    ours, base = get_pretrained_cfg(name), get_pretrained_cfg(NAMES[name][0])
    side = 518 if "patch14" in name else 512
    assert ours.input_size == (3, side, side)
    assert ours.crop_pct == 1.0
    assert ours.num_classes == (0 if name.endswith("_distilled") else base.num_classes)
    for field in ("mean", "std", "interpolation", "license", "classifier", "first_conv", "fixed_input_size"):
        assert getattr(ours, field) == getattr(base, field)
    assert timm.models.is_model_pretrained(name) == NAMES[name][1]


def test_published_files() -> None:
    variants = [v for v in published_variants().values() if isinstance(v.weights, Published)]
    files = {variant.weights.file for variant in variants}
    assert len(files) == 22
    folders = [file.partition("/")[0] for file in files]
    assert {folder: folders.count(folder) for folder in folders} == {
        "voc_denoised": 12,
        "voc_distilled": 8,
        "imgnet_denoised": 1,
        "imgnet_distilled": 1,
    }
    for variant in variants:
        assert variant.weights.repo == "jjiaweiyang/DVT"
        assert variant.weights.file.endswith(f"/{variant.base}.pth")
        assert ("distilled" in variant.weights.file) == variant.distilled
        assert set(variant.figures) == {"voc_miou", "ade20k_miou", "nyu_rmse"}
    best = {v.name: v.figures for v in published_variants().values()}
    assert best["vit_base_patch14_dinov2.dvt"] == {"voc_miou": 85.17, "ade20k_miou": 48.68, "nyu_rmse": 0.3832}
    assert best["vit_base_patch14_dinov2.dvt"] == best["vit_base_patch14_dinov2.dvt_in1k"]


def test_widths_in_the_manifest() -> None:
    for base, facts in read_manifest()["bases"].items():
        with torch.device("meta"):
            model = timm.create_model(base.partition(".")[0], depth=1)
        assert model.embed_dim == facts["dim"], base


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_builds(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    variant = names.find_variant(name)
    assert hasattr(model, "denoiser") == (not variant.distilled)
    if variant.distilled:
        assert type(model).__module__.startswith("timm.")
    else:
        assert model.denoiser.grid_size == variant.grid_size
        assert model.denoiser.dim == model.embed_dim == variant.dim
        assert model.denoiser.pos_embed.is_meta


def error_of(*args: Any, **kwargs: Any) -> str:
    with pytest.raises((RuntimeError, ValueError, TypeError, KeyError)) as error:
        timm.create_model(*args, **kwargs)
    return str(error.value)


def test_unknown_tag() -> None:
    message = error_of("vit_base_patch14_dinov2.dvt_foo")
    assert "dvt_foo" in message
    assert "vit_base_patch14_dinov2.dvt_in1k" in message
    message = error_of("vit_tiny_patch16_224.dvt", pretrained=True)
    assert "none" in message
    assert "register_variant" in message


@pytest.mark.parametrize("name", [name for name, (_, published) in NAMES.items() if not published])
def test_weights_that_nobody_published(name: str) -> None:
    message = error_of(name, pretrained=True)
    assert name in message
    assert "denoiser=" in message
    assert "pretrained=False" in message


class TestRegisterVariant:
    @pytest.fixture
    def name(self):
        yield "vit_tiny_patch16_224.dvt_mine"
        names._own.pop("vit_tiny_patch16_224.dvt_mine", None)

    def test_a_name_of_ones_own(self, name: str, tmp_path) -> None:
        head = random_head(192, (14, 14))
        dvt_timm.save_head(head, tmp_path / "head", base="vit_tiny_patch16_224.augreg_in21k")
        before = get_pretrained_cfg("vit_tiny_patch16_224")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dvt_timm.register_variant(name, base="vit_tiny_patch16_224.augreg_in21k", head=str(tmp_path / "head"))
            dvt_timm.register_variant(name, base="vit_tiny_patch16_224.augreg_in21k", head=str(tmp_path / "head"))
        assert get_pretrained_cfg("vit_tiny_patch16_224") == before
        assert name in dvt_timm.list_variants(pretrained=True)
        model = timm.create_model(name, depth=1)
        assert torch.equal(model.denoiser.pos_embed, head.pos_embed)
        assert model.pretrained_cfg["hf_hub_id"] == "timm/vit_tiny_patch16_224.augreg_in21k"
        assert not hasattr(timm.create_model("vit_tiny_patch16_224", depth=1), "denoiser")

    def test_on_the_backbone_of_a_denoised_name(self, tmp_path) -> None:
        name, demo = "vit_small_patch14_dinov2.dvt_own", "vit_small_patch14_dinov2.dvt_demo"
        dvt_timm.save_head(random_head(384), tmp_path, base=demo)
        dvt_timm.register_variant(name, base=demo, head=tmp_path)
        ours, theirs = timm.create_model(name, pretrained=True), timm.create_model(demo, pretrained=True)
        names._own.pop(name)
        assert torch.equal(ours.blocks[3].attn.qkv.weight, theirs.blocks[3].attn.qkv.weight)
        assert ours.denoiser.grid_size == (5, 4)

    def test_a_denoised_base_stands_for_its_backbone(self) -> None:
        name = "vit_base_patch16_224.dvt_own"
        dvt_timm.register_variant(name, base="vit_base_patch16_224.dvt_dino")
        try:
            assert timm.create_model(name, depth=1).patch_embed.grid_size == (14, 14)  # dino's own, not the 512's
            assert names.find_variant(name).base == "vit_base_patch16_224.dino"
        finally:
            names._own.pop(name)

    def test_a_head_itself_is_refused(self) -> None:
        base = "vit_tiny_patch16_224.augreg_in21k"
        with pytest.raises(TypeError, match="save_head"):
            dvt_timm.register_variant("vit_tiny_patch16_224.dvt_mine", base=base, head=random_head(192))

    @pytest.mark.parametrize(
        ("name", "base", "message"),
        [
            ("vit_tiny_patch16_224.dvt_mine", "vit_small_patch16_224.dino", "architecture of base"),
            ("vit_tiny_patch16_224", "vit_tiny_patch16_224", "<arch>.<tag>"),
            ("vit_nano.dvt", "vit_nano.base", "timm knows no architecture"),
            ("resnet50.dvt_mine", "resnet50.a1_in1k", "not among timm's ViT"),
            ("vit_base_patch16_224.dino", "vit_base_patch16_224.mae", "'dino' of vit_base_patch16_224 is taken"),
            ("vit_base_patch16_224.dvt_dino", "vit_base_patch16_224.dino", "'dvt_dino' of .* is taken"),
            ("vit_base_patch16_224.dvt_mine", "vit_base_patch16_224.dvt_dino_voc_distilled", "use .*_224.dino"),
            ("vit_base_patch16_224.dvt_mine", "vit_base_patch16_224.nope", "nope"),
        ],
    )
    def test_errors(self, name: str, base: str, message: str) -> None:
        before = dvt_timm.list_variants()
        with pytest.raises((ValueError, RuntimeError), match=message):
            dvt_timm.register_variant(name, base=base)
        assert dvt_timm.list_variants() == before


def test_direct_calls_of_the_entrypoint_are_denoised_too() -> None:
    for namespace in (timm.models, timm.models.vision_transformer):
        model = namespace.vit_small_patch14_dinov2(pretrained_cfg="dvt", depth=1)
        assert isinstance(model.denoiser, DenoiserHead)
        assert not hasattr(namespace.vit_small_patch14_dinov2(depth=1), "denoiser")


def test_reload_keeps_the_users_own_names() -> None:
    name = "vit_tiny_patch16_224.dvt_kept"
    dvt_timm.register_variant(name, base="vit_tiny_patch16_224.augreg_in21k")
    importlib.reload(registry)
    importlib.reload(dvt_timm)
    assert set(dvt_timm.list_variants()) == {*NAMES, name}
    assert hasattr(timm.create_model(name, depth=1), "denoiser")
    names._own.pop(name)
