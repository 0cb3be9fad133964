"""The pins of the published files in the manifest, commit, size and SHA-256: resolved on the Hub, written, verified."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from .._util.files import replacing, sha256_of
from ..checkpoints.published import published_head, published_weights
from ..hub import client as hub
from ..hub.errors import explained
from ..manifest import Embedded, Published, Variant, published_variants, read_manifest, weights_path

COLUMNS = {
    "file": ("file", ""),
    "size": ("bytes", "d"),
    "sha256": ("SHA-256", ""),
    "revision": ("revision", ""),
    "state": ("state", ""),
}


def pin(path: Path | None = None, revision: str = "main") -> list[dict[str, Any]]:
    """Write commit, size and SHA-256 of every published file into the manifest, all or none.

    Args:
        path: of the manifest, the installed one by default.
        revision: branch, tag or commit of the repositories.

    Returns:
        A row of `COLUMNS` for every file.

    Raises:
        OSError: if the Hub refuses or fails, or the manifest cannot be written.
        ValueError: if a repository lacks a file, or does not know its SHA-256.
    """
    manifest = json.loads(json.dumps(read_manifest()))
    rows = []
    for repo, files in _by_repository(published_variants().values()).items():
        commit, found = _look_up(repo, list(files), revision)
        unknown = [file for file in files if file not in found]
        if unknown:
            raise ValueError(
                f"{repo} at {commit} has no large file {', '.join(unknown)}; nothing was written, try another revision"
            )
        for entry in manifest["variants"]:
            if entry.get("repo") == repo:
                size, sha256 = found[entry["file"]]
                entry.update(revision=commit, size=size, sha256=sha256)
        rows += [_row(repo, file, commit, *found[file], "pinned") for file in files]
    with replacing(path or weights_path("manifest.json")) as scratch:
        scratch.write_text(format_manifest(manifest), encoding="utf-8")
    return rows


def check(download: bool = False) -> list[dict[str, Any]]:
    """Compare every file of the manifest with its pin: embedded ones on disk, published ones on the Hub.

    Args:
        download: fetch the published ones too, check their bytes and build what they hold.

    Returns:
        A row of `COLUMNS` for every file; its state is "ok", or says what is wrong.

    Raises:
        OSError: if the Hub refuses or fails.
    """
    variants = list(published_variants().values())
    rows = [_embedded_row(weights) for weights in _embedded(variants)]
    for repo, files in _by_repository(variants).items():
        rows += _published_rows(repo, list(files.values()), download)
    return rows


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """Format the manifest as JSON, each base and each name on one line."""
    parts = []
    for key, value in manifest.items():
        if isinstance(value, dict):
            lines = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n  }"
        elif isinstance(value, list):
            text = "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"
        else:
            text = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _by_repository(variants: Iterable[Variant]) -> dict[str, dict[str, Variant]]:
    """Collect the files of every repository, each with one variant that has it: several names may share a file."""
    files: dict[str, dict[str, Variant]] = defaultdict(dict)
    for variant in variants:
        if isinstance(variant.weights, Published):
            files[variant.weights.repo][variant.weights.file] = variant
    return files


def _look_up(repo: str, files: list[str], revision: str | None) -> tuple[str, dict[str, tuple[int, str]]]:
    """Look up the commit of a revision, and size and SHA-256 of those files that are there as large ones."""
    api = HfApi(**hub.CLIENT)
    with explained(f"look up the files of {repo}" + (f" at {revision}" if revision else ""), repo):
        commit = str(api.model_info(repo, revision=revision).sha)
        entries = api.get_paths_info(repo, files, revision=commit)
    large = {file.path: file.lfs for file in entries if isinstance(file, RepoFile) and file.lfs is not None}
    return commit, {path: (lfs.size, lfs.sha256) for path, lfs in large.items()}


def _published_rows(repo: str, variants: list[Variant], download: bool) -> list[dict[str, Any]]:
    """Make the rows of one repository's files, each looked up at its own revision."""
    by_revision: dict[str | None, list[Variant]] = defaultdict(list)
    for variant in variants:
        by_revision[_published(variant).revision].append(variant)
    rows = []
    for revision, group in by_revision.items():
        _, found = _look_up(repo, [_published(variant).file for variant in group], revision)
        for variant in group:
            weights = _published(variant)
            state = _state(weights, found.get(weights.file))
            if download and state in ("ok", "not pinned"):
                state = _build(variant) or state
            rows.append(_row(repo, weights.file, revision, weights.size, weights.sha256, state))
    return rows


def _published(variant: Variant) -> Published:
    assert isinstance(variant.weights, Published)
    return variant.weights


def _state(weights: Published, found: tuple[int, str] | None) -> str:
    """Say the state of a file, from its size and SHA-256 on the Hub."""
    if found is None:
        return "not on the Hub"
    if weights.sha256 is None:
        return "not pinned"
    return "ok" if found == (weights.size, weights.sha256) else f"differs: {found[1]} on the Hub"


def _build(variant: Variant) -> str | None:
    """Fetch and read a variant's file; say what is wrong with it, None if nothing is."""
    read = published_weights if variant.distilled else published_head
    try:
        read(_published(variant), variant.base)
    except ValueError as error:
        return f"unusable: {' '.join(str(error).split())}"
    return None


def _embedded(variants: Iterable[Variant]) -> list[Embedded]:
    """List the files that ship with this package, heads first."""
    heads = [variant.weights for variant in variants if isinstance(variant.weights, Embedded)]
    return heads + [variant.backbone for variant in variants if variant.backbone is not None]


def _embedded_row(weights: Embedded) -> dict[str, Any]:
    path = weights_path(weights.file)
    if not path.is_file():
        state = "missing; install dvt-timm again"
    else:
        state = "ok" if sha256_of(path) == weights.sha256 else "differs; install dvt-timm again"
    return _row("embedded", weights.file, None, weights.size, weights.sha256, state)


def _row(
    repo: str, file: str, revision: str | None, size: int | None, sha256: str | None, state: str
) -> dict[str, Any]:
    return {"file": f"{repo}:{file}", "size": size, "sha256": sha256, "revision": revision, "state": state}
