"""Heads and models to the Hugging Face Hub: one commit of config.json, model.safetensors and a model card."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import CommitInfo, CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData
from timm.models import get_pretrained_cfg

from . import hub
from .checkpoints import plain_model, read_head, save_head
from .files import read_json, replacing
from .head import DenoiserHead
from .hub import CONFIG_NAME, HUB_PREFIX, WEIGHTS_NAME
from .manifest import backbone_of, weights_path
from .registry import backbone_name
from .saved import is_saved_model, save_model
from .stride import OverlapPatchEmbed

CARD_NAME = "README.md"
Metrics = Sequence[EvalResult] | Mapping[str, Mapping[str, float]]


def push_to_hub(
    model_or_head: Any,
    repo_id: str,
    *,
    base: str | None = None,
    metrics: Metrics | None = None,
    datasets: Sequence[str] = (),
    merged: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push a head, or a model with its head, to a repository of the Hugging Face Hub, in one commit.

    The repository is made if it does not exist; a README.md that it has is kept. After a failure the same call can be
    repeated: what has arrived is not sent again, and a commit that has landed is not made twice (a pull request is).

    Args:
        model_or_head: a `DenoiserHead`, or a model of `timm.create_model`. Of a denoised model the head alone is
            pushed, unless `merged`; a model without a head (distilled, fine-tuned) is pushed whole.
        repo_id: "user/repo".
        base: timm name of the backbone that the head belongs to, "arch.tag"; a model's own by default.
        metrics: `{"dataset": {"metric": value}}`, or `huggingface_hub.EvalResult`s, for the card's model-index.
        datasets: names on the Hub of those that it was trained on, for the card.
        merged: push base and head as one model, which needs no other repository.
        private: make a new repository private; None for the owner's default.
        revision: branch to push to, made if it does not exist; "main" by default.
        create_pr: open a pull request rather than commit.
        token: of the Hub, the one of `hf auth login` or HF_TOKEN by default.
        commit_message: one that names the head or the model by default.

    Returns:
        The commit: `commit_url`, `oid`, `pr_url`.

    Raises:
        TypeError: for what is neither a head nor a model that `create_model` built.
        ValueError: if `base` is missing or does not fit the head, or a metric is no finite number.
        OSError: if the Hub refuses or fails; the class is the Hub client's, the text says what to do.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = _write(model_or_head, folder, base, merged)
        card = render_card(config, repo_id, metrics=metrics, datasets=datasets)
        (folder / CARD_NAME).write_text(str(card), encoding="utf-8")
        message = commit_message or f"Add {_title(config)}"
        return push_folder(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=message,
        )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    token: str | None,
    commit_message: str,
) -> CommitInfo:
    """Commit the three files of a folder; arguments and errors as those of `push_to_hub`."""
    api = HfApi(token=token, **hub.CLIENT)
    with hub.explained(f"push to {repo_id}", repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        has_card = api.file_exists(repo_id, CARD_NAME, revision=revision)
        names = [CONFIG_NAME, WEIGHTS_NAME] + ([] if has_card else [CARD_NAME])
        try:
            return api.create_commit(
                repo_id,
                operations=[CommitOperationAdd(name, folder / name) for name in names],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except RuntimeError as error:  # the client's, of an upload that failed; its reason is the cause
            raise ConnectionError(str(error.__cause__ or error)) from error
        except json.JSONDecodeError as error:  # the client reads an answer before it looks at its status
            raise ConnectionError(f"the Hub's answer is no JSON: {error}") from error


def load_folder(folder: str | Path, base: str | None = None, *, merged: bool = False) -> tuple[Any, str | None]:
    """What a folder of `save_head` or `save_model` holds, for `push_to_hub`: the head or model, and the head's base.

    Args:
        folder: or a head's `.safetensors` file, or `hf-hub:user/repo`.
        base: of a head, its own by default.
        merged: put the head on its pretrained base.

    Raises:
        ValueError: if a head does not say its base.
        OSError: as `load_head`.
    """
    if is_saved_model(folder):
        name = str(folder) if str(folder).startswith(HUB_PREFIX) else f"local-dir:{folder}"
        return timm.create_model(name, pretrained=True), None
    head, config = read_head(folder)
    base = base or config.get("base")
    if base is None:
        raise ValueError(f"{folder} does not say which backbone it belongs to; pass its timm name as base")
    return (timm.create_model(base, pretrained=True, denoiser=head) if merged else head), base


def _write(model_or_head: Any, folder: Path, base: str | None, merged: bool) -> dict[str, Any]:
    """Write config.json and model.safetensors; the configuration, with the base under "base"."""
    is_model = not isinstance(model_or_head, DenoiserHead)
    head = getattr(model_or_head, "denoiser", None) if is_model else model_or_head
    if is_model and not hasattr(model_or_head, "pretrained_cfg"):
        raise TypeError(f"push_to_hub takes a DenoiserHead or a model of timm.create_model, got {model_or_head!r:.80}")
    base = backbone_name(base or _name_of(model_or_head, is_model))
    if is_model and (merged or head is None):
        save_model(model_or_head, folder)
        return {**read_json(folder / CONFIG_NAME), "base": base}
    if merged:
        raise ValueError(
            "merged=True pushes a model, got a head; put it on its base first: create_model(denoiser=head)"
        )
    assert isinstance(head, DenoiserHead)
    dim = model_or_head.embed_dim if is_model else plain_model(base).embed_dim
    if head.dim != dim:
        raise ValueError(f"the head is {head.dim} channels wide, {base} has {dim}; name the base that it belongs to")
    embed = getattr(model_or_head, "patch_embed", None)
    save_head(head, folder, base=base, stride=embed.stride[0] if isinstance(embed, OverlapPatchEmbed) else None)
    return _name_base_weights(folder)


def _name_of(model: Any, is_model: bool) -> str:
    """The timm name of a model, "arch.tag"."""
    cfg = model.pretrained_cfg if is_model else {}
    if not cfg.get("tag"):
        raise ValueError("name the backbone that the head belongs to: base='arch.tag', a name of timm")
    return f"{cfg['architecture']}.{cfg['tag']}"


def _name_base_weights(folder: Path) -> dict[str, Any]:
    """Ask the Hub for the SHA-256 of the base's weights, if the configuration does not have it yet."""
    config = read_json(folder / CONFIG_NAME)
    if config["base_sha256"] is None:
        config["base_sha256"] = hub.published_sha256(get_pretrained_cfg(config["base"]).hf_hub_id)
        with replacing(folder / CONFIG_NAME) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def render_card(
    config: Mapping[str, Any], repo_id: str, *, metrics: Metrics | None = None, datasets: Sequence[str] = ()
) -> ModelCard:
    """The model card of a head or a model.

    Args:
        config: its `config.json`, with the base's timm name as "base".
        repo_id: "user/repo" that it is for.
        metrics: as `push_to_hub`.
        datasets: as `push_to_hub`.

    Raises:
        ValueError: if a metric is no finite number.
    """
    denoiser = config.get("model_args", {}).get("denoiser")
    is_head = config["kind"] == "head"
    results = _eval_results(metrics)
    base_cfg = get_pretrained_cfg(backbone_of(config["base"]), allow_unregistered=True)
    data = ModelCardData(
        base_model=base_cfg and base_cfg.hf_hub_id,
        base_model_relation="adapter" if is_head else "finetune",
        library_name="timm" if denoiser is None else "dvt-timm",
        license=base_cfg and base_cfg.license,
        pipeline_tag="image-feature-extraction",
        tags=["dvt-timm", "timm", "vision-transformer", "denoising", "dense-prediction"],
        datasets=list(datasets) or None,
        model_name=repo_id if results else None,
        eval_results=results,
    )
    return ModelCard.from_template(
        data,
        template_path=str(weights_path("card.md")),
        title=_title(config),
        repo_id=repo_id,
        config=config,
        denoiser=denoiser,
        is_head=is_head,
        results=results or [],
    )


def _title(config: Mapping[str, Any]) -> str:
    if config["kind"] == "head":
        return f"Denoiser head for {config['base']}"
    return f"{'Denoised' if 'denoiser' in config['model_args'] else 'Weights for'} {config['base']}"


def _eval_results(metrics: Metrics | None) -> list[EvalResult] | None:
    if not isinstance(metrics, Mapping):
        return list(metrics) if metrics else None
    results = []
    for dataset, values in metrics.items():
        if not isinstance(values, Mapping):
            raise ValueError(f'metrics must be {{"dataset": {{"metric": value}}}}, got {values!r} for {dataset!r}')
        for metric, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"metric {metric!r} of {dataset!r} must be a finite number, got {value!r}")
            results.append(
                EvalResult(
                    task_type="image-feature-extraction",
                    dataset_type=_slug(dataset),
                    dataset_name=dataset,
                    metric_type=_slug(metric),
                    metric_name=metric,
                    metric_value=value,
                )
            )
    return results or None


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())
