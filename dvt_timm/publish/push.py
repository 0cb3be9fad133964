"""Pushes heads and models to the Hugging Face Hub: one commit of config.json, model.safetensors and a model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

from .._util.errors import warn_caller
from .._util.files import CONFIG_NAME, WEIGHTS_NAME, read_json, sha1s_of, write_json
from .._util.modules import uncompiled
from ..checkpoints.heads import load_head, save_head
from ..checkpoints.models import save_model
from ..checkpoints.tensors import kind_of, read_config
from ..head import Head
from ..hub import client as hub
from ..hub.errors import explained
from ..names import backbone_of, base_cfg, name_of, plain_model
from .card import Metrics, eval_results, render_card, title_of

CARD_NAME = "README.md"


def push_to_hub(
    model_or_head: Any,
    repo_id: str,
    *,
    base: str | None = None,
    metrics: Metrics | None = None,
    datasets: Sequence[str] = (),
    verdict: Sequence[str] = (),
    merged: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push a head, or a model with its head, to a repository of the Hugging Face Hub, in one commit.

    The repository is made if it does not exist. A README.md that it has is kept, and a warning says so if it is not the
    card of this push. After a failure the same call can be repeated: what has arrived is not sent again, and a commit
    that has landed is not made twice. A pull request is opened anew, unless nothing would change.

    Args:
        model_or_head: a head, or a model of `timm.create_model`. Of a denoised model the head alone is
            pushed, unless `merged`: pass that where the backbone's weights are your own. A model without a head
            (distilled, fine-tuned) is pushed whole.
        repo_id: "user/repo".
        base: timm name of the backbone that the head belongs to, "arch.tag"; a model's own by default.
        metrics: `{"dataset": {"metric": value}}`, or `huggingface_hub.EvalResult`s, for the card's model-index.
        datasets: the Hub's names of the data sets that it was trained on, for the card.
        verdict: sentences for the card on how it compares, as verdict.json of a run of training has them.
        merged: push base and head as one model, which needs no other repository.
        private: make a new repository private; True refuses one that is public. None for the owner's default.
        revision: branch to push to, made if it does not exist; "main" by default.
        create_pr: open a pull request rather than commit.
        token: of the Hub; by default the one of `hf auth login` or HF_TOKEN.
        commit_message: by default one that names the head or the model.

    Returns:
        The commit: `commit_url`, `oid`, `pr_url`.

    Raises:
        TypeError: if `model_or_head` is neither a head nor a model that `create_model` built.
        ValueError: if `base` is missing or does not fit, a metric or a value of the head is not finite, `merged` is
            asked of a head alone, `repo_id` is no "user/repo", or a public repository is to be private.
        OSError: if the Hub refuses or fails; the class is the Hub client's, the text says what to do.
    """
    repo_id = repo_id.removeprefix(hub.HUB_PREFIX)
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id must be 'user/repo', got {repo_id!r}")
    results = eval_results(metrics)
    datasets = [datasets] if isinstance(datasets, str) else datasets
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = _write(uncompiled(model_or_head), folder, base, merged, token)
        (folder / CARD_NAME).write_text(
            str(render_card(config, f"{hub.HUB_PREFIX}{repo_id}", results, datasets, verdict)), encoding="utf-8"
        )
        message = commit_message or f"Add {title_of(config)}"
        commit, other_card = _commit(folder, repo_id, message, private, revision, create_pr, token)
    if other_card:
        warn_caller(f"{repo_id} has a README.md, which is kept; see whether it says what was pushed")
    return commit


def load_folder(folder: str | Path, base: str | None = None, *, merged: bool = False) -> tuple[Any, str | None]:
    """Load what a folder of `save_head` or `save_model` holds, for `push_to_hub`: the head or model, and its base.

    Args:
        folder: the folder, or a head's `.safetensors` file, or `hf-hub:user/repo`.
        base: timm name of the backbone; by default the one that the folder names.
        merged: put a head on its pretrained base.

    Raises:
        ValueError: if a head does not say its base.
        OSError: if there is nothing at `folder`, or the Hub refuses or fails.
    """
    if (hub.is_source(folder) or Path(folder).is_dir()) and kind_of(folder) in ("model", "denoised"):
        name = str(folder) if hub.is_source(folder) else f"local-dir:{folder}"
        return timm.create_model(name, pretrained=True), base or (read_config(folder) or {}).get("base")
    head = load_head(folder)
    base = base or (head.source.base if head.source else None)
    if base is None:
        raise ValueError(f"{folder} does not say which backbone it belongs to; pass its timm name as base")
    if not merged:
        return head, base
    stride = head.source.stride if head.source else None
    overlap = {} if stride is None else {"stride": stride}
    return timm.create_model(base, pretrained=True, denoiser=head, **overlap), base


def _write(module: Any, folder: Path, base: str | None, merged: bool, token: str | None) -> dict[str, Any]:
    """Write config.json and model.safetensors; give the configuration, with the base under "base"."""
    if isinstance(module, Head):
        if merged:
            raise ValueError("merged=True pushes a model, got a head; put it on a model: create_model(denoiser=head)")
        if base is not None and module.dim != (dim := plain_model(base).embed_dim):
            raise ValueError(f"the head is {module.dim} channels wide, {base} has {dim}; name the base it belongs to")
        return _write_head(module, folder, base, token)
    if not hasattr(module, "pretrained_cfg"):
        kind = type(module).__name__
        raise TypeError(f"push_to_hub takes a denoiser head or a model of timm.create_model, got a {kind}")
    base, arch = backbone_of(base or _tagged_name_of(module)), module.pretrained_cfg["architecture"]
    if base.partition(".")[0] != arch:
        raise ValueError(f"the model is a {arch}, its base cannot be {base}; leave base out, or name one of {arch}")
    try:
        base_cfg(base)
    except RuntimeError as error:
        raise ValueError(f"timm knows no {base!r}; name the model's backbone: base='arch.tag'") from error
    if merged or not isinstance(getattr(module, "denoiser", None), Head):
        return read_json(save_model(module, folder, base=base) / CONFIG_NAME)
    return _write_head(module, folder, base, token)


def _write_head(head_or_model: Any, folder: Path, base: str | None, token: str | None) -> dict[str, Any]:
    """Write a head, with the SHA-256 of its base's weights, for which the Hub is asked if need be; give its config."""
    config = read_json(save_head(head_or_model, folder, base=base) / CONFIG_NAME)
    source = base_cfg(config["base"]).hf_hub_id
    if config["base_sha256"] is None and source:
        try:
            config["base_sha256"] = hub.published_sha256(source, token)
        except OSError as error:
            warn_caller(f"the SHA-256 of the base's weights is not recorded: {error}")
        write_json(folder / CONFIG_NAME, config)
    return config


def _tagged_name_of(model: Any) -> str:
    if not model.pretrained_cfg.get("tag"):
        raise ValueError(f"the model, a {name_of(model)}, does not say its tag; name its base: base='arch.tag'")
    return name_of(model)


def _commit(
    folder: Path,
    repo_id: str,
    message: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    token: str | None,
) -> tuple[CommitInfo, bool]:
    """Commit the three files of a folder, or two if the repository has a card; say whether that is another one."""
    api = HfApi(token=token, **hub.CLIENT)
    with explained(f"push to {repo_id}", repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        is_public = bool(private) and not api.model_info(repo_id).private
    if is_public:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or leave private=True out")
    with explained(f"push to {repo_id}", repo_id):
        if revision is not None and not revision.startswith("refs/") and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = {file.path: file for file in api.get_paths_info(repo_id, [CARD_NAME], revision=revision)}
        card = there.get(CARD_NAME)
        other_card = isinstance(card, RepoFile) and card.blob_id not in sha1s_of(folder / CARD_NAME)
        names = [CONFIG_NAME, WEIGHTS_NAME] + ([] if card else [CARD_NAME])
        operations = [CommitOperationAdd(name, folder / name) for name in names]
        target: dict[str, Any] = {"revision": revision, "create_pr": create_pr}
        try:
            return api.create_commit(repo_id, operations, commit_message=message, **target), other_card
        except json.JSONDecodeError as error:  # the client reads an answer before it looks at its status
            raise ConnectionError(f"the Hub's answer is no JSON: {error}") from error
