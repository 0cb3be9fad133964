"""The denoised classes: what comes out of every door timm hands features out of."""

import inspect
import warnings
from typing import Any

import pytest
import timm
import torch
from helpers import EVA, FAMILIES, VIT, create, create_pair, head_of, images, perturb, random_head, size_of
from timm.models import FeatureHookNet
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from dvt_timm import AveragedEva, AveragedVisionTransformer, DenoisedEva, DenoisedVisionTransformer

both = pytest.mark.parametrize("name", [VIT, EVA])


def grid_of(name: str, size: tuple[int, int]) -> tuple[int, int]:
    patch = int(name.split("_patch")[1].split("_")[0])
    return size[0] // patch, size[1] // patch


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_forward_features(name: str) -> None:
    model, plain = create_pair(name)
    size = size_of(name)
    x, prefix = images(*size), plain.num_prefix_tokens
    ours, theirs = model.forward_features(x), plain.forward_features(x)
    assert torch.equal(ours[:, :prefix], theirs[:, :prefix])
    torch.testing.assert_close(ours[:, prefix:], head_of(model, theirs, grid_of(name, size)))
    assert not torch.allclose(ours[:, prefix:], theirs[:, prefix:], atol=0.1)


@pytest.mark.parametrize("name", ["deit3_base_patch16_224.dvt", "vit_base_patch16_384.dvt_augreg", EVA])
@torch.no_grad()
def test_logits_of_a_token_pooled_classifier_are_the_plain_ones(name: str) -> None:
    model, plain = create_pair(name, num_classes=10)
    x = images(*size_of(name))
    assert model(x).shape == (2, 10)
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@torch.no_grad()
def test_forward_intermediates(name: str, norm: bool, output_fmt: str) -> None:
    model, plain = create_pair(name)
    x = images(*size_of(name))
    final, maps = model.forward_intermediates(x, norm=norm, output_fmt=output_fmt)
    _, plain_maps = plain.forward_intermediates(x, norm=norm, output_fmt=output_fmt)
    features = model.forward_features(x)
    assert torch.equal(final, features)
    for ours, theirs in zip(maps[:-1], plain_maps[:-1], strict=True):
        assert torch.equal(ours, theirs)
    last = maps[-1].flatten(2).transpose(1, 2) if output_fmt == "NCHW" else maps[-1]
    assert maps[-1].shape == plain_maps[-1].shape
    torch.testing.assert_close(last, features[:, plain.num_prefix_tokens :])


@both
@pytest.mark.parametrize("indices", [None, 1, 2, [0, 2], [-1], [2], (0, 1, -1)])
@pytest.mark.parametrize("intermediates_only", [False, True])
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("return_prefix_tokens", [False, True])
@torch.no_grad()
def test_every_choice_of_intermediates(name, indices, intermediates_only, stop_early, return_prefix_tokens) -> None:
    model, plain = create_pair(name)
    x = images(*size_of(name))
    options = {
        "intermediates_only": intermediates_only,
        "stop_early": stop_early,
        "return_prefix_tokens": return_prefix_tokens,
    }
    ours, theirs = (m.forward_intermediates(x, indices, **options) for m in (model, plain))
    if not intermediates_only:
        assert torch.equal(ours[0], model.forward_features(x))
        ours, theirs = ours[1], theirs[1]
    assert len(ours) == len(theirs)
    if return_prefix_tokens:
        assert all(torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
        ours, theirs = [a[0] for a in ours], [b[0] for b in theirs]
    assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))
    expected = model.forward_features(x)[:, plain.num_prefix_tokens :]
    torch.testing.assert_close(ours[-1].flatten(2).transpose(1, 2), expected)


@both
@torch.no_grad()
def test_without_the_last_block_nothing_is_denoised(name: str) -> None:
    model, plain = create_pair(name)
    x = images(*size_of(name))
    ours = model.forward_intermediates(x, [0, 1], intermediates_only=True)
    theirs = plain.forward_intermediates(x, [0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    final, _ = model.forward_intermediates(x, [0, 1])
    assert torch.equal(final, model.forward_features(x))


@both
@torch.no_grad()
def test_stopping_early_says_that_the_final_features_are_raw(name: str) -> None:
    model, plain = create_pair(name)
    x = images(*size_of(name))
    with pytest.warns(UserWarning, match="not denoised.*intermediates_only"):
        final, maps = model.forward_intermediates(x, [0], stop_early=True)
    expected, plain_maps = plain.forward_intermediates(x, [0], stop_early=True)
    assert torch.equal(final, expected)
    assert torch.equal(maps[0], plain_maps[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)


@torch.no_grad()
def test_output_dict() -> None:
    model, plain = create_pair(VIT)
    x = images()
    ours = model.forward_intermediates(x, 2, output_dict=True, return_prefix_tokens=True)
    theirs = plain.forward_intermediates(x, 2, output_dict=True, return_prefix_tokens=True)
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image_features"], model.forward_features(x))
    assert torch.equal(ours["image_intermediates"][0], theirs["image_intermediates"][0])
    last = ours["image_intermediates"][-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(last, ours["image_features"][:, 1:])
    only = model.forward_intermediates(x, 2, output_dict=True, intermediates_only=True)
    assert only.keys() == {"image_intermediates"}
    assert torch.equal(only["image_intermediates"][-1], ours["image_intermediates"][-1])


@both
@torch.no_grad()
def test_attention_masks(name: str) -> None:
    model, plain = create_pair(name)
    if "attn_mask" not in inspect.signature(type(plain).__mro__[0].forward_features).parameters:
        pytest.skip(f"timm {timm.__version__} has no attention masks in {type(plain).__name__}")
    size = size_of(name)
    x, grid = images(*size), grid_of(name, size)
    tokens = grid[0] * grid[1] + plain.num_prefix_tokens
    mask = torch.rand(2, 1, tokens, tokens, generator=torch.Generator().manual_seed(3)) > 0.3
    theirs = plain.forward_features(x, attn_mask=mask)
    assert not torch.allclose(theirs, plain.forward_features(x), atol=0.1)
    ours = model.forward_features(x, attn_mask=mask)
    torch.testing.assert_close(ours[:, plain.num_prefix_tokens :], head_of(model, theirs, grid))
    final, maps = model.forward_intermediates(x, 1, attn_mask=mask)
    torch.testing.assert_close(final, ours)
    torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), ours[:, plain.num_prefix_tokens :])
    if "is_causal" in inspect.signature(type(plain).forward_features).parameters:
        theirs = plain.forward_features(x, is_causal=True)
        causal = model.forward_features(x, is_causal=True)
        assert not torch.allclose(causal, ours, atol=0.1)
        torch.testing.assert_close(causal[:, plain.num_prefix_tokens :], head_of(model, theirs, grid))
        torch.testing.assert_close(model.forward_intermediates(x, 1, is_causal=True)[0], causal)


@torch.no_grad()
def test_get_intermediate_layers() -> None:
    model, plain = create_pair(VIT)
    x = images()
    for norm in (False, True):
        ours = model.get_intermediate_layers(x, 2, reshape=True, norm=norm)
        theirs = plain.get_intermediate_layers(x, 2, reshape=True, norm=norm)
        assert torch.equal(ours[0], theirs[0])
        expected = model.forward_features(x)[:, 1:]
        torch.testing.assert_close(ours[-1].flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("out_indices", [(-1,), (0, 2), (-2, -1), 2, None])
@torch.no_grad()
def test_features_only(name: str, out_indices) -> None:
    options = {} if out_indices is None else {"out_indices": out_indices}
    features = create(name, features_only=True, **options)
    plain = create(FAMILIES[name], features_only=True, dynamic_img_size=True, **options)
    model, _ = create_pair(name)
    features.model.load_state_dict(model.state_dict(), strict=False)
    plain.model.load_state_dict(model.state_dict(), strict=False)
    x = images(*size_of(name))
    ours, theirs = features(x), plain(x)
    assert features.feature_info.channels() == plain.feature_info.channels()
    assert features.feature_info.reduction() == plain.feature_info.reduction()
    assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))
    expected = model.forward_features(x)[:, model.num_prefix_tokens :]
    torch.testing.assert_close(ours[-1].flatten(2).transpose(1, 2), expected)


@both
@pytest.mark.parametrize("out_indices", [(0, 1), (-2,)])
@torch.no_grad()
def test_features_only_without_the_last_block_are_the_plain_ones(name: str, out_indices: tuple[int, ...]) -> None:
    """They lie before the head: one warning says that none is denoised."""
    with pytest.warns(UserWarning, match=r"only the last block's map is denoised.*\(-1\)") as caught:
        features = create(name, features_only=True, out_indices=out_indices)
    assert len(caught) == 1
    plain = create(FAMILIES[name], features_only=True, dynamic_img_size=True, out_indices=out_indices)
    assert features.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(features.state_dict())
    x = images(*size_of(name))
    assert all(torch.equal(a, b) for a, b in zip(features(x), plain(x), strict=True))


@both
@pytest.mark.parametrize("prune_norm", [False, True])
@torch.no_grad()
def test_pruning_the_last_block_takes_the_head_off(name: str, prune_norm: bool) -> None:
    model, plain = create_pair(name, num_classes=5)
    with pytest.warns(UserWarning, match="the denoiser is taken off"):
        assert model.prune_intermediate_layers([0, 1], prune_norm) == plain.prune_intermediate_layers(
            [0, 1], prune_norm
        )
    x = images(*size_of(name))
    assert type(model) is type(plain)
    assert torch.equal(model(x), plain(x))
    (final, maps), (expected, plain_maps) = (each.forward_intermediates(x, [1]) for each in (model, plain))
    assert torch.equal(final, expected)
    assert torch.equal(maps[0], plain_maps[0])


@both
@pytest.mark.parametrize("feature_cls", ["fx", "hook", FeatureHookNet])
@torch.no_grad()
def test_features_of_hooks_and_graphs_are_the_plain_ones(name: str, feature_cls: Any) -> None:
    """What the blocks give lies before the head: one warning says that none is denoised."""
    options = {"feature_cls": feature_cls, "features_only": True, "out_indices": (0, 2)}
    if feature_cls == "fx":
        pytest.importorskip("torchvision")
    with pytest.warns(UserWarning, match="before the denoiser: none of these maps is denoised") as caught:
        features = create(name, **options)
    assert len(caught) == 1
    plain = create(FAMILIES[name], img_size=size_of(name), **options)
    x = images(*size_of(name))
    assert features.feature_info.get_dicts() == plain.feature_info.get_dicts()
    assert [each.shape for each in features(x)] == [each.shape for each in plain(x)]
    model = create(name)
    expected = model.forward_intermediates(x, [0, 2], intermediates_only=True)[0]
    assert torch.equal(features(x)[0][:, model.num_prefix_tokens :], expected.flatten(2).transpose(1, 2))


def test_a_feature_cls_that_no_vit_has_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of 'getter', 'fx', 'hook' for a ViT, got 'list'"):
        create(VIT, features_only=True, feature_cls="list")


@both
@torch.no_grad()
def test_pruning_keeps_the_final_norm(name: str) -> None:
    model = create(name)
    x = images(*size_of(name))
    expected = model.forward_intermediates(x, 1, intermediates_only=True)[0]
    assert model.prune_intermediate_layers([0, 2], prune_norm=True) == [0, 2]
    assert torch.equal(model.forward_intermediates(x, 1, intermediates_only=True)[0], expected)
    assert isinstance(model.head, torch.nn.Identity)
    kept = create(name, num_classes=7)
    kept.prune_intermediate_layers([2], prune_head=False)
    assert kept.head.out_features == 7


def test_dropped_tokens_are_an_error() -> None:
    model = create(VIT)
    model.patch_drop = timm.layers.PatchDropout(0.5)
    with pytest.raises(AssertionError, match="dropped or merged"):
        model.train().forward_features(images())


def test_classes_are_timms() -> None:
    assert issubclass(DenoisedVisionTransformer, VisionTransformer)
    assert issubclass(DenoisedEva, Eva)
    for kind in (DenoisedVisionTransformer, DenoisedEva, AveragedVisionTransformer, AveragedEva):
        parent = Eva if issubclass(kind, Eva) else VisionTransformer
        ours = list(inspect.signature(kind.forward_intermediates).parameters)
        theirs = list(inspect.signature(parent.forward_intermediates).parameters)
        assert ours[: len(theirs)] == theirs


@both
@torch.no_grad()
def test_the_last_map_depends_on_the_head(name: str) -> None:
    model, features = create(name), create(name, features_only=True, out_indices=(-1,))
    x = images(*size_of(name))
    for forward, head in (
        (model.forward_features, model.denoiser),
        (lambda x: features(x)[-1], features.model.denoiser),
    ):
        before = forward(x)
        perturb(head)
        assert not torch.allclose(forward(x), before, atol=1e-2)


@pytest.mark.parametrize("name", [VIT, EVA])
@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_a_head_that_nothing_reads_is_not_run(name: str, global_pool: str) -> None:
    """A classifier of the class token: the head gets no gradients, so that no optimizer decays it."""
    model = create(name, denoiser=random_head(), num_classes=3, global_pool=global_pool).train()
    before = {key: value.clone() for key, value in model.denoiser.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    x = images(*size_of(name))
    model(x).square().sum().backward()
    optimizer.step()
    assert all((p.grad is None) == (global_pool == "token") for p in model.denoiser.parameters())
    same = [torch.equal(value, before[key]) for key, value in model.denoiser.state_dict().items()]
    assert all(same) if global_pool == "token" else not all(same)
    assert model.blocks[0].attn.proj.weight.grad is not None
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x)))
    with pytest.raises(ValueError, match="is not a multiple of patch size"):
        model(images(57, 71))
