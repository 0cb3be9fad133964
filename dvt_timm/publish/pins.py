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
from ..manifest import Variant, published_variants, read_manifest, weights_path

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
    for repo, files in _by_repository(published_variants()).items():
        commit, found = _look_up(repo, files, revision)
        unknown = [file for file in files if file not in found]
        if unknown:
            raise ValueError(f"{repo} at {commit} has no large file {', '.join(unknown)}; nothing was written")
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
    variants = published_variants()
    rows = [_embedded_row(file, size, sha256) for file, size, sha256 in _embedded_files(variants)]
    by_file = {(variant.repo, variant.file): variant for variant in variants if variant.repo is not None}
    for repo, files in _by_repository(variants).items():
        rows += _published_rows(repo, [by_file[repo, file] for file in files], download)
    return rows


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """The manifest as JSON, one base and one name on a line each."""
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


def _by_repository(variants: Iterable[Variant]) -> dict[str, list[str]]:
    """The files of every repository, each once: several names may share one."""
    files: dict[str, dict[str, None]] = defaultdict(dict)
    for variant in variants:
        if variant.repo is not None and variant.file is not None:
            files[variant.repo][variant.file] = None
    return {repo: list(names) for repo, names in files.items()}


def _look_up(repo: str, files: list[str], revision: str | None) -> tuple[str, dict[str, tuple[int, str]]]:
    """The commit of a revision, and size and SHA-256 of those files that are there, as large ones."""
    api = HfApi(**hub.CLIENT)
    with hub.explained(f"look up the files of {repo}" + (f" at {revision}" if revision else ""), repo):
        commit = str(api.model_info(repo, revision=revision).sha)
        entries = api.get_paths_info(repo, files, revision=commit)
    large = {file.path: file.lfs for file in entries if isinstance(file, RepoFile) and file.lfs is not None}
    return commit, {path: (lfs.size, lfs.sha256) for path, lfs in large.items()}


def _published_rows(repo: str, variants: list[Variant], download: bool) -> list[dict[str, Any]]:
    by_revision: dict[str | None, list[Variant]] = defaultdict(list)
    for variant in variants:
        by_revision[variant.revision].append(variant)
    rows = []
    for revision, group in by_revision.items():
        _, found = _look_up(repo, [str(variant.file) for variant in group], revision)
        for variant in group:
            state = _state(variant, found.get(str(variant.file)))
            if download and state in ("ok", "not pinned"):
                state = _build(variant) or state
            rows.append(_row(repo, str(variant.file), revision, variant.size, variant.sha256, state))
    return rows


def _state(variant: Variant, found: tuple[int, str] | None) -> str:
    """What is to be said of a file, from its size and SHA-256 on the Hub."""
    if found is None:
        return "not on the Hub"
    if variant.sha256 is None:
        return "not pinned"
    return "ok" if found == (variant.size, variant.sha256) else f"differs: {found[1]} on the Hub"


def _build(variant: Variant) -> str | None:
    """Fetch and read a variant's file; what is wrong with it, None if nothing."""
    try:
        if variant.distilled:
            published_weights(variant)
        else:
            published_head(variant)
    except ValueError as error:
        return f"unusable: {' '.join(str(error).split())}"
    return None


def _embedded_files(variants: Iterable[Variant]) -> list[tuple[str, int | None, str | None]]:
    heads = [(v.file, v.size, v.sha256) for v in variants if v.repo is None and v.file is not None]
    bases = [(v.base_file, v.base_size, v.base_sha256) for v in variants if v.base_file is not None]
    return heads + bases


def _embedded_row(file: str, size: int | None, sha256: str | None) -> dict[str, Any]:
    path = weights_path(file)
    if not path.is_file():
        state = "missing; install dvt-timm again"
    else:
        state = "ok" if sha256_of(path) == sha256 else "differs; install dvt-timm again"
    return _row("embedded", file, None, size, sha256, state)


def _row(
    repo: str, file: str, revision: str | None, size: int | None, sha256: str | None, state: str
) -> dict[str, Any]:
    return {"file": f"{repo}:{file}", "size": size, "sha256": sha256, "revision": revision, "state": state}
