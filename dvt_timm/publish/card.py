"""The model card of a repository, by `huggingface_hub`'s own classes and the template in weights/card.md."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..manifest import weights_path
from ..names import base_cfg, find_variant, takes_denoiser

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")  # words of the Hub
Metrics = Sequence[EvalResult] | Mapping[str, Mapping[str, float]]


def render_card(
    config: Mapping[str, Any],
    place: str,
    results: Sequence[EvalResult] = (),
    datasets: Sequence[str] = (),
    verdict: Sequence[str] = (),
) -> ModelCard:
    """Render the card of a head or a model.

    Args:
        config: its `config.json`, with the base's timm name as "base".
        place: where `create_model` finds it, "hf-hub:user/repo" or "local-dir:FOLDER".
        results: figures for the model-index.
        datasets: the Hub's names of the data sets that it was trained on.
        verdict: sentences on how it compares.
    """
    args, is_head = config["model_args"], config["kind"] == "head"
    for_timm = not {"denoiser", "stride"} & args.keys()  # plain timm knows neither
    cfg = base_cfg(config["base"])
    data = ModelCardData(
        base_model=cfg.hf_hub_id,
        base_model_relation="adapter" if is_head else "finetune",
        library_name="timm" if for_timm else "dvt-timm",
        **_license(cfg.license),
        pipeline_tag="image-feature-extraction",
        tags=["dvt-timm", "timm", "vision-transformer", "denoising", "dense-prediction"],
        datasets=list(datasets) or None,
        model_name=place.partition(":")[2] if results else None,
        eval_results=list(results) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(weights_path("card.md")),
        title=title_of(config),
        place=place,
        head=place.removeprefix("local-dir:"),
        config=config,
        denoiser=args.get("denoiser"),
        is_head=is_head,
        note=known.note if (known := find_variant(config["base"])) else None,
        by_name=takes_denoiser(config["base"]),
        for_timm=for_timm,
        verdict=verdict,
        results=[
            [
                _table_cell(value)
                for value in (result.dataset_name, result.metric_name or result.metric_type, result.metric_value)
            ]
            for result in results
        ],
    )


def title_of(config: Mapping[str, Any]) -> str:
    """Make the title of a card from a `config.json` with the base's timm name as "base"."""
    if config["kind"] == "head":
        return f"{'Position projection' if 'rank' in config else 'Denoiser head'} for {config['base']}"
    return f"{'Denoised' if 'denoiser' in config['model_args'] else 'Weights for'} {config['base']}"


def eval_results(metrics: Metrics | EvalResult | None) -> list[EvalResult]:
    """Put metrics into the form of the Hub's client, their numbers as Python's.

    Args:
        metrics: `{"dataset": {"metric": value}}`, or `EvalResult`s.

    Raises:
        ValueError: if a metric is not finite, or no number.
    """
    if isinstance(metrics, Mapping):
        results = [result for dataset, values in metrics.items() for result in _results_of(dataset, values)]
    else:
        results = [metrics] if isinstance(metrics, EvalResult) else list(metrics or [])
    return [replace(result, metric_value=_plain_number(result)) for result in results]


def _results_of(dataset: str, values: Mapping[str, float]) -> list[EvalResult]:
    if not isinstance(values, Mapping):
        raise ValueError(f'metrics must be {{"dataset": {{"metric": value}}}}, got {values!r} for {dataset!r}')
    for metric, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"metric {metric!r} of {dataset!r} must be a number, got {value!r}")
    return [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type=_slug(dataset),
            dataset_name=dataset,
            metric_type=_slug(metric),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in values.items()
    ]


def _plain_number(result: EvalResult) -> Any:
    """Give the value of a metric; make Python's number of one that may be NumPy's."""
    value = result.metric_value
    if not isinstance(value, Real):
        return value
    if not math.isfinite(value):
        name = result.metric_name or result.metric_type
        raise ValueError(f"metric {name!r} of {result.dataset_name!r} is not finite: {value!r}")
    return int(value) if isinstance(value, int) else float(value)


def _license(name: str | None) -> dict[str, Any]:
    """Say a license as cards of the Hub do: those that it has no word for are "other"."""
    return {"license": name} if name in (None, *LICENSES) else {"license": "other", "license_name": name}


def _table_cell(value: Any) -> str:
    """Escape a value so that its text stays in its cell."""
    return " ".join(html.escape(str(value), quote=False).split()).replace("|", "\\|")


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split()) or "other"
