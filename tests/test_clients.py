"""The denoised names through the code that people really use; the last map must depend on the head.

Libraries that are not in the extra `clients` are tried where they are installed; docs/clients.md says when they were.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import DEMO, EVA, VIT, images, perturb, random_head, size_of
from hub_server import Hub
from torch import Tensor, nn

import dvt_timm


@torch.no_grad()
def assert_depends_on_head(forward: Any, head: nn.Module, x: Tensor) -> None:
    before = forward(x).clone()
    perturb(head)
    assert (forward(x) - before).abs().max() > 1e-2


class TestSegmentationModelsPytorch:
    """`tu-<timm name>` as the encoder of a DPT."""

    @pytest.mark.parametrize("name", ["vit_base_patch16_224.dvt_dino", pytest.param(EVA, marks=pytest.mark.slow)])
    def test_dpt(self, name: str) -> None:
        smp = pytest.importorskip("segmentation_models_pytorch")
        model = smp.DPT(f"tu-{name}", encoder_weights=None, encoder_depth=4, classes=3).eval()
        encoder = model.encoder.model
        assert isinstance(encoder.denoiser, dvt_timm.DenoiserHead)
        x = images(64, 96)
        with torch.no_grad():
            assert model(x).shape == (2, 3, 64, 96)
        assert_depends_on_head(lambda x: model.encoder(x)[0][-1], encoder.denoiser, x)
        assert_depends_on_head(model, encoder.denoiser, x)

    def test_dpt_with_the_embedded_weights(self) -> None:
        """Patch 14 does not fit smp's DPT, plain or denoised; timm resamples the patch embedding to 16."""
        smp = pytest.importorskip("segmentation_models_pytorch")
        model = smp.DPT(f"tu-{DEMO}", encoder_weights=True, encoder_depth=4, classes=2, patch_size=16).eval()
        x = images(64, 96)
        expected = timm.create_model(DEMO, pretrained=True, patch_size=16).eval()
        with torch.no_grad():
            last = model.encoder(x)[0][-1]
            assert torch.equal(last.flatten(2).transpose(1, 2), expected.forward_features(x)[:, 1:])
        assert_depends_on_head(model, model.encoder.model.denoiser, x)


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip(
        "transformers", exc_type=ImportError
    )  # each version wants huggingface_hub of its own time


class TestTransformers:
    @pytest.mark.parametrize("name", [VIT, EVA])
    def test_timm_backbone_in_upernet(self, transformers: Any, name: str) -> None:
        backbone = transformers.TimmBackboneConfig(
            backbone=name, out_indices=[2, 5, 8, 11], use_pretrained_backbone=False
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=32, use_auxiliary_head=False, num_labels=3
        )
        model = transformers.UperNetForSemanticSegmentation(config).eval()
        head = model.backbone._backbone.model.denoiser
        assert isinstance(head, dvt_timm.DenoiserHead)
        x = images(*size_of(name))
        assert_depends_on_head(lambda x: model.backbone(x).feature_maps[-1], head, x)
        assert_depends_on_head(lambda x: model(x).logits, head, x)

    def test_auto_backbone_by_name(self, transformers: Any, hub: Hub) -> None:
        """It asks the Hub whether there is such a repository, and then timm."""
        hub.fail(f"GET /api/models/{DEMO}", status=404, headers={"X-Error-Code": "RepoNotFound"})
        backbone = transformers.AutoBackbone.from_pretrained(DEMO, use_timm_backbone=True, out_indices=(5, 11)).eval()
        x = images()
        with torch.no_grad():
            last = backbone(x).feature_maps[-1]
            expected = timm.create_model(DEMO, pretrained=True).eval().forward_features(x)
        assert torch.equal(last.flatten(2).transpose(1, 2), expected[:, 1:])

    @pytest.mark.parametrize("name", [VIT, EVA, "vit_base_patch16_clip_384.dvt", DEMO])
    @pytest.mark.parametrize("stride", [None, 7])
    def test_timm_wrapper_on_a_folder_saved_by_us(
        self, transformers: Any, name: str, stride: int | None, tmp_path: Path
    ) -> None:
        """TimmWrapperModel passes the bare architecture and model_args only: the head must be in them."""
        if name == EVA and not hasattr(timm.layers.RotaryEmbeddingCat, "init_non_persistent_buffers"):
            pytest.skip(f"transformers loses the rotary buffers of timm {timm.__version__}'s Eva, plain ones too")
        small = {} if name == DEMO else {"depth": 2, "denoiser": random_head(384 if "small" in name else 768)}
        model = timm.create_model(name, pretrained=name == DEMO, stride=stride, **small).eval()
        dvt_timm.save_model(model, tmp_path)
        wrapped = transformers.TimmWrapperModel.from_pretrained(tmp_path).eval()
        x = images(*size_of(name))
        with torch.no_grad():
            ours = wrapped(x).last_hidden_state
            torch.testing.assert_close(ours, model.forward_features(x), atol=1e-6, rtol=0)
        assert_depends_on_head(lambda x: wrapped(x).last_hidden_state, wrapped.timm_model.denoiser, x)


class TestTorchvision:
    @pytest.mark.parametrize("name", [VIT, EVA])
    def test_create_feature_extractor(self, name: str) -> None:
        extraction = pytest.importorskip("torchvision.models.feature_extraction")
        model = timm.create_model(name, depth=2).eval()
        extractor = extraction.create_feature_extractor(model, {"denoiser": "map", "norm": "raw"})
        x = images(*size_of(name))
        with torch.no_grad():
            output = extractor(x)
            expected = model.forward_features(x)
        torch.testing.assert_close(output["map"].flatten(1, 2), expected[:, 1:])
        assert_depends_on_head(lambda x: extractor(x)["map"], extractor.denoiser, x)


@pytest.mark.slow
class TestAnomalib:
    """Its models call `forward_intermediates` of a timm name; `examples/anomaly_dino.py` runs one of them."""

    @pytest.fixture(autouse=True)
    def antialiasing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """anomalib switches timm's off for the whole process."""
        module = timm.models.vision_transformer
        monkeypatch.setattr(module, "resample_abs_pos_embed", module.resample_abs_pos_embed)

    @pytest.mark.parametrize("name", [VIT, EVA])
    @pytest.mark.parametrize("norm", [True, False])
    @pytest.mark.parametrize("class_token", [True, False])
    def test_feature_extractor(self, name: str, norm: bool, class_token: bool) -> None:
        extractors = pytest.importorskip("anomalib.models.components.feature_extractors")
        extractor = extractors.TimmFeatureExtractor(
            name,
            ["blocks.5", "blocks.11"],
            pre_trained=False,
            output_fmt="NLC",
            norm=norm,
            return_class_token=class_token,
        )
        model, x = extractor.feature_extractor, images(*size_of(name))
        last = extractor(x)["blocks.11"]
        with torch.no_grad():
            tokens = model.forward_features(x)
        torch.testing.assert_close(last[:, -tokens.shape[1] + 1 :], tokens[:, 1:])
        assert last.shape[1] == tokens.shape[1] - (not class_token)
        assert_depends_on_head(lambda x: extractor(x)["blocks.11"], model.denoiser, x)


@pytest.mark.slow
class TestTerratorch:
    def test_segmentation(self) -> None:
        factory = pytest.importorskip("terratorch.models").EncoderDecoderFactory()
        model = factory.build_model(
            task="segmentation",
            backbone=f"timm_{DEMO}",
            backbone_pretrained=True,
            backbone_out_indices=[2, 5, 8, 11],
            decoder="UperNetDecoder",
            decoder_channels=32,
            decoder_scale_modules=True,
            num_classes=3,
        ).eval()
        assert_depends_on_head(lambda x: model(x).output, model.encoder.model.denoiser, images(112, 112))


@pytest.mark.slow
class TestTorchgeo:
    def test_change_detection(self) -> None:
        models = pytest.importorskip("torchgeo.models")
        model = models.ChangeViT(VIT, img_size=112).eval()
        pair = torch.stack([images(112, 112, batch=1), images(112, 112, batch=1).neg()], dim=1)
        assert_depends_on_head(model, model.encoder.denoiser, pair)


@pytest.mark.slow
class TestOpenClip:
    @pytest.mark.parametrize("name", [VIT, EVA])
    def test_image_tower(self, name: str) -> None:
        towers = pytest.importorskip("open_clip.timm_model")
        tower = towers.TimmModel(name, embed_dim=32, pool="avg", proj="linear").eval()
        assert_depends_on_head(tower, tower.trunk.denoiser, images(*size_of(name)))


@pytest.mark.slow
class TestMmlearn:
    def test_encoder(self) -> None:
        vision = pytest.importorskip("mmlearn.modules.encoders.vision")
        encoder = vision.TimmViT(VIT, projection_dim=32, pretrained=False, freeze_layers=3).eval()
        assert_depends_on_head(
            lambda x: encoder({encoder.modality.name: x}).hidden_states[-1], encoder.model.denoiser, images()
        )
