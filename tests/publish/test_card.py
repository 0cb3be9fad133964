"""Cards: data that the Hub reads, code that runs, text that stays in its place."""

import re
from typing import Any

import numpy as np
import pytest
import timm
from helpers import TINY, random_head, same_weights
from hub_server import Hub
from huggingface_hub import EvalResult
from pushing import METRICS, card_of

import dvt_timm

pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.mark.parametrize("merged", [False, True])
def test_data(hub: Hub, model: Any, merged: bool) -> None:
    dvt_timm.push_to_hub(model, "me/x", merged=merged, metrics=METRICS, datasets=["imagenet-1k"])
    data = card_of(hub, "me/x").data.to_dict()
    assert data["library_name"] == "dvt-timm"
    assert data["pipeline_tag"] == "image-feature-extraction"
    assert data["base_model"] == f"timm/{TINY}"
    assert data["base_model_relation"] == ("finetune" if merged else "adapter")
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["imagenet-1k"]
    assert {"dvt-timm", "timm", "denoising"} <= set(data["tags"])
    (entry,) = data["model-index"]
    found = {r["dataset"]["name"]: (r["metrics"][0]["name"], r["metrics"][0]["value"]) for r in entry["results"]}
    assert found == {"PASCAL VOC 2012": ("mIoU", 84.92), "NYU Depth v2": ("RMSE", 0.3811)}


def test_license_of_the_base(hub: Hub) -> None:
    for base, license in (
        ("vit_base_patch16_224.mae", "cc-by-nc-4.0"),
        ("eva02_base_patch16_clip_224.merged2b", "mit"),
    ):
        hub.absent.add(f"timm/{base}")
        dvt_timm.push_to_hub(random_head(768, (4, 4)), f"me/{license}", base=base)
        assert card_of(hub, f"me/{license}").data.license == license


def test_eval_results_of_the_client(hub: Hub, head: Any) -> None:
    result = EvalResult("image-segmentation", "ade20k", "ADE20k", "miou", 48.5, dataset_split="val")
    dvt_timm.push_to_hub(head, "me/head", base=TINY, metrics=[result])
    assert card_of(hub, "me/head").data.eval_results == [result]
    assert "| ADE20k | miou | 48.5 |" in card_of(hub, "me/head").content


@pytest.mark.parametrize("merged", [False, True])
def test_its_code_runs(hub: Hub, model: Any, merged: bool) -> None:
    dvt_timm.push_to_hub(model, "me/x", merged=merged)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(hub, "me/x").content, re.DOTALL)
    assert code.count("create_model") == (1 if merged else 2)
    for part in code.split("\n\n# or"):
        scope: dict[str, Any] = {}
        exec(f"import timm, dvt_timm\n{part if part.startswith('import') else part.partition(chr(10))[2]}", scope)
        assert same_weights(scope["model"], model)


def test_no_line_is_left_empty_of_data(hub: Hub, head: Any, model: Any, base: Any) -> None:
    for name, pushed, options in (
        ("head", head, {"base": TINY}),
        ("merged", model, {"merged": True}),
        ("plain", base, {"metrics": METRICS}),
    ):
        dvt_timm.push_to_hub(pushed, f"me/{name}", **options)
        content = card_of(hub, f"me/{name}").content
        assert not re.search(r"None|Undefined|\{\{|\{%|\n\n\n", content), content


def test_numbers_of_numpy(hub: Hub, head: Any) -> None:
    metrics = {"VOC": {"mIoU": np.float64(84.9), "RMSE": np.float32(0.5), "n": 3}}
    dvt_timm.push_to_hub(head, "me/head", base=TINY, metrics=metrics)
    assert [result.metric_value for result in card_of(hub, "me/head").data.eval_results] == [84.9, 0.5, 3]
    one = EvalResult("image-segmentation", "voc", "VOC", "miou", np.float64(1.5))
    dvt_timm.push_to_hub(head, "me/one", base=TINY, metrics=one)
    assert card_of(hub, "me/one").data.eval_results[0].metric_value == 1.5


def test_odd_names_stay_in_their_cells(hub: Hub, head: Any) -> None:
    metrics = {"A|B\n\n# evil <script>": {'m"x: |': 1}, "!!!": {"???": 2}}
    dvt_timm.push_to_hub(head, "me/head", base=TINY, metrics=metrics, datasets="imagenet-1k")
    card = card_of(hub, "me/head")
    assert '| A\\|B # evil &lt;script&gt; | m"x: \\| | 1 |' in card.content
    assert "<script>" not in card.text
    assert card.data.datasets == ["imagenet-1k"]
    assert [result.dataset_type for result in card.data.eval_results] == ["a-b-evil-script", "other"]


def test_a_license_that_the_hub_has_no_word_for(hub: Hub, head: Any) -> None:
    if "vit_small_patch16_dinov3" not in timm.list_models():
        pytest.skip("no DINOv3 in this timm")
    base = "vit_small_patch16_dinov3.lvd1689m"
    hub.absent.add(f"timm/{base}")
    dvt_timm.push_to_hub(random_head(384), "me/head", base=base)
    data = card_of(hub, "me/head").data
    assert (data.license, data.license_name) == ("other", "dinov3-license")


@pytest.mark.parametrize(
    "metrics",
    [
        {"VOC": {"mIoU": float("nan")}},
        {"VOC": {"mIoU": "84"}},
        {"VOC": {"mIoU": True}},
        {"VOC": 84.0},
        [EvalResult("a", "b", "c", "d", float("inf"))],
    ],
)
def test_metrics_that_are_none(hub: Hub, head: Any, metrics: Any) -> None:
    with pytest.raises(ValueError, match="metric"):
        dvt_timm.push_to_hub(head, "me/head", base=TINY, metrics=metrics)
    assert "me/head" not in hub.repos
