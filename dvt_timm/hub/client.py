"""The Hugging Face Hub, through its client: files of one commit, checked before anything reads them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from .._util.files import WEIGHTS_NAME, sha1s_of, sha256_of
from .._version import __version__
from .errors import explained

HUB_PREFIX = "hf-hub:"
CLIENT: dict[str, Any] = {"library_name": "dvt-timm", "library_version": __version__}


def is_source(source: object) -> bool:
    """Say whether a source is a repository, "hf-hub:user/repo[@revision]"."""
    return str(source).startswith(HUB_PREFIX)


def split_source(source: str) -> tuple[str, str | None]:
    """Split "user/repo" or "user/repo@revision", with or without "hf-hub:", into (repository, revision or None)."""
    repo, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    return repo, revision or None


def fetch(
    repo: str,
    file: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    sha256: str | None = None,
    check_cached: bool = True,
) -> Path:
    """Fetch a file of a repository into the cache; `commit_of` gives its commit, for the files that belong to it.

    If the revision is a commit, a file in the cache needs no request. The bytes are checked: a wrong file is downloaded
    once more, at its commit, and removed if it is wrong again.

    Args:
        repo: "user/repo".
        file: path in the repository.
        revision: commit, tag or branch, "main" by default.
        cache_dir: of the Hub client, its own default if None.
        sha256: the SHA-256 that the file must have; by default the hash that the Hub names.
        check_cached: check a file that was in the cache before, too.

    Returns:
        The file's path in the cache.

    Raises:
        OSError: if it is not to be had. The class is the Hub client's; the text names repository, file and remedy.
        ValueError: if the bytes are wrong twice, or `repo` is no name of a repository.
    """
    name = f"{repo}/{file}" + (f" at {revision}" if revision else "")
    with explained(f"get {name}", repo):
        was_cached = cached(repo, file, revision, cache_dir)
        path = _download(repo, file, revision, cache_dir)
        is_new = path != was_cached
        if not (is_new or check_cached) or _is_sound(repo, file, path, sha256, is_new):
            return path
    commit = commit_of(path)
    _discard(path)
    with explained(f"get {name} again (its copy in the cache is damaged and was removed)", repo):
        path = _download(repo, file, commit, cache_dir, force=True)
        if _is_sound(repo, file, path, sha256, is_new=True):
            return path
    _discard(path)
    wanted = "dvt-timm has on record" if sha256 else "the Hub says"
    raise ValueError(
        f"{repo}/{file} at {commit} was downloaded twice and its hash is not what {wanted}; it was removed from the "
        "cache. Try another network, and tell the owner of the repository if it happens again"
    )


def pin_weights(source: str, cache_dir: str | Path | None = None) -> tuple[str, Path | None]:
    """Pin the place that timm is to load weights from to one commit, and fetch them for it, checked.

    Args:
        source: "user/repo" or "user/repo@revision".
        cache_dir: of the Hub client.

    Returns:
        "user/repo@commit" and the path of its `model.safetensors`; `source` and None for repositories without one,
        whose other formats timm knows.

    Raises:
        OSError: as `fetch`.
        ValueError: as `fetch`.
    """
    repo, revision = split_source(source)
    try:
        path = fetch(repo, WEIGHTS_NAME, revision=revision, cache_dir=cache_dir)
    except RemoteEntryNotFoundError:
        return source, None
    except LocalEntryNotFoundError:
        if _look_in_cache(repo, WEIGHTS_NAME, revision, cache_dir) is not _CACHED_NO_EXIST:
            raise
        return source, None
    return f"{repo}@{commit_of(path)}", path


def published_sha256(source: str, token: str | None = None) -> str | None:
    """Ask the Hub for the SHA-256 of a repository's `model.safetensors`; None if it has no such file.

    Raises:
        OSError: if the Hub fails or cannot be reached.
    """
    repo, revision = split_source(source)
    with explained(f"look up {repo}/{WEIGHTS_NAME}", repo):
        try:
            url = hf_hub_url(repo, WEIGHTS_NAME, revision=revision)
            return _as_sha256(get_hf_file_metadata(url, token=token, **CLIENT).etag)
        except (RemoteEntryNotFoundError, RepositoryNotFoundError):
            return None


def commit_of(path: Path) -> str:
    """Read the commit of a file in the cache from its path, .../snapshots/<commit>/<file>."""
    return path.relative_to(storage_of(path)).parts[1]


def storage_of(path: Path) -> Path:
    """Find the folder of a cached file's repository."""
    return next(parent.parent for parent in path.parents if parent.name == "snapshots")


def cached(repo: str, file: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path | None:
    """Give the path of a file in the cache, None if it is not there; no request is made."""
    found = _look_in_cache(repo, file, revision, cache_dir)
    return Path(found) if isinstance(found, str) else None


def _look_in_cache(repo: str, file: str, revision: str | None, cache_dir: str | Path | None) -> Any:
    """Give the path of a file, None, or the client's note that the repository has no such file."""
    folder = None if cache_dir is None else Path(cache_dir).expanduser()
    return try_to_load_from_cache(repo, file, cache_dir=folder, revision=revision)


def recorded_sha256(path: Path) -> str | None:
    """Give the SHA-256 that the Hub named for a large cached file; None for a small one, or if it is not kept."""
    return _as_sha256(_recorded_etag(path))


def _recorded_etag(path: Path) -> str | None:
    """Read the ETag that the cache keeps as the name of the blob that a file links to; None where it made no link."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _as_sha256(etag: str | None) -> str | None:
    """Take the ETag of a large file, which is its SHA-256; that of a small file is shorter and gives None."""
    return etag if etag is not None and len(etag) == 64 else None


def _download(repo: str, file: str, revision: str | None, cache_dir: str | Path | None, force: bool = False) -> Path:
    download = partial(hf_hub_download, repo, file, revision=revision, cache_dir=cache_dir, force_download=force)
    try:
        return Path(download(**CLIENT))
    except HfHubHTTPError:
        raise
    except HTTPError:  # the connection broke, perhaps only because the server had closed an idle one
        return Path(download(**CLIENT))
    except ValueError as error:  # all that the client says if it cannot force a download
        if force and isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise


def _is_sound(repo: str, file: str, path: Path, sha256: str | None, is_new: bool) -> bool:
    """Say whether the bytes of a cached file are what they should be."""
    expected = sha256 or _recorded_etag(path)
    if expected is None and is_new:
        expected = get_hf_file_metadata(hf_hub_url(repo, file, revision=commit_of(path)), **CLIENT).etag
    if _as_sha256(expected):
        return expected == sha256_of(path)
    return expected is None or len(expected) != 40 or expected in sha1s_of(path)


def _discard(path: Path) -> None:
    """Remove a file from the cache, with the blob it links to."""
    if path.is_symlink():
        path.parent.joinpath(os.readlink(path)).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
