"""The Hugging Face Hub, through its client: files of one commit, checked before anything reads them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .._util.files import sha1s_of, sha256_of
from .._version import __version__

HUB_PREFIX = "hf-hub:"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"  # of old repositories, which timm reads
CLOSED_CLIENT = "client has been closed"  # what huggingface_hub 1.26 says where no connection can be made
CLIENT: dict[str, Any] = {"library_name": "dvt-timm", "library_version": __version__}
TOKEN_REMEDY = "check HF_TOKEN, or `hf auth login` with a token that may do this"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def split_source(source: str) -> tuple[str, str | None]:
    """(repository, revision or None) of "user/repo" or "user/repo@revision", with or without "hf-hub:"."""
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
    """A file of a repository; `commit_of` says at which commit, for the others that belong to it.

    One in the cache at a revision that is a commit needs no request. The bytes are checked; a file that is not what it
    should be is downloaded once more, at its commit, and removed if it still is not.

    Args:
        repo: "user/repo".
        file: path in it.
        revision: commit, tag or branch, "main" by default.
        cache_dir: of the Hub client, its own default if None.
        sha256: what the file must hash to; by default what the Hub says it hashes to.
        check_cached: check a file that was in the cache before, too.

    Returns:
        Its path in the cache.

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
    """Resolve where timm is to load weights from, and fetch them for it, checked.

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
    """The commit of a file in the cache, whose path is .../snapshots/<commit>/<file>."""
    return path.relative_to(storage_of(path)).parts[1]


def storage_of(path: Path) -> Path:
    """The folder of a cached file's repository."""
    return next(parent.parent for parent in path.parents if parent.name == "snapshots")


def cached(repo: str, file: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path | None:
    """The path of a file that is in the cache; no request is made."""
    found = _look_in_cache(repo, file, revision, cache_dir)
    return Path(found) if isinstance(found, str) else None


def _look_in_cache(repo: str, file: str, revision: str | None, cache_dir: str | Path | None) -> Any:
    """The path of a file, None, or the client's note that the repository has no such file."""
    folder = None if cache_dir is None else Path(cache_dir).expanduser()
    return try_to_load_from_cache(repo, file, cache_dir=folder, revision=revision)


def recorded_sha256(path: Path) -> str | None:
    """What the Hub said a large cached file hashes to; None for a small one, or if that is not kept."""
    return _as_sha256(_recorded_etag(path))


def _recorded_etag(path: Path) -> str | None:
    """The cache keeps it as the name of the blob that a file links to, where the file system has links."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _as_sha256(etag: str | None) -> str | None:
    """The ETag of a large file is its SHA-256; that of a small one is something shorter."""
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
    """Whether the bytes of a cached file are what they should be."""
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


@contextmanager
def explained(action: str, repo: str) -> Iterator[None]:
    """Errors of the Hub's client and of the disk, with a text that says what failed, why, and what to do.

    Nothing but calls of the client belongs inside.

    Args:
        action: what is tried, as in "get user/repo/config.json".
        repo: "user/repo".

    Raises:
        OSError: of the client's own class where it has one.
        ValueError: for what is no name of a repository.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"cannot {action}: {error}") from None
    except (OSError, HTTPError, RuntimeError) as error:
        known = _as_known(error)
        text = f"cannot {action}: " + "; ".join(_reason(known, repo))
        raise _with_text(known, text) from None


def _as_known(error: Exception) -> Exception:
    """The OSError or HTTPError behind a RuntimeError, which xet and the client's uploads raise for whatever fails."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if not isinstance(error, RuntimeError):
        return error
    if CLOSED_CLIENT in str(error):
        return LocalEntryNotFoundError(str(error))
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(match[1]), os.strerror(int(match[1])))
    return ConnectionError(_first_line(error))


def _with_text(error: Exception, text: str) -> Exception:
    """An error of the same class where its class says something, else a ConnectionError."""
    if isinstance(error, HfHubHTTPError):
        return type(error)(text, response=error.response)
    if isinstance(error, LocalEntryNotFoundError):
        return LocalEntryNotFoundError(text)
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, text)
    return ConnectionError(text)


def _reason(error: BaseException, repo: str) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    if isinstance(error, LocalEntryNotFoundError):
        return _unreachable_reason(error.__cause__, repo)
    if isinstance(error, HfHubHTTPError):
        return _refusal_reason(error, repo)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it"
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"the disk is full ({_first_line(error)})", "free some, or set HF_HOME or cache_dir to another disk"
    if isinstance(error, OSError) and error.errno is not None:
        return _first_line(error), "check the permissions of the cache, or set HF_HOME or cache_dir to another folder"
    if match := re.search(r"\b(401 Unauthorized|403 Forbidden)\b", str(error)):  # xet knows no class for it
        return f"the Hub does not allow it ({match[1]})", TOKEN_REMEDY
    if type(error).__name__ == "ConnectError":  # of httpx or httpx2, as the client's version has it
        return f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})", "check network, proxy and HF_ENDPOINT"
    return f"the transfer failed ({_first_line(error)})", "run it again, with HF_HUB_DISABLE_XET=1 if xet is what fails"


def _unreachable_reason(cause: BaseException | None, repo: str) -> tuple[str, str]:
    """Of a file that is neither in the cache nor to be had."""
    if isinstance(cause, HfHubHTTPError):
        reason, remedy = _refusal_reason(cause, repo)
        return f"{reason}, and it is not in the cache", remedy
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set and it is not in the cache", "unset it, or load it once with a network"
    detail = f" ({_first_line(cause)})" if cause is not None else ""
    return (
        f"{constants.ENDPOINT} cannot be reached{detail} and it is not in the cache",
        "check network, proxy and HF_ENDPOINT, or pass a head of your own as denoiser=...; "
        "vit_small_patch14_dinov2.dvt_demo needs no network",
    )


def _refusal_reason(error: HfHubHTTPError, repo: str) -> tuple[str, str]:
    """Of an answer of the Hub that is an error."""
    page, status = f"{constants.ENDPOINT}/{repo}", error.response.status_code
    if isinstance(error, GatedRepoError):
        return "access to it is restricted", f"ask for it at {page}, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        private = "check its name; if it is private, `hf auth login` or set HF_TOKEN"
        return f"there is no repository {repo} at {constants.ENDPOINT}, or it is private", private
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled the repository", f"see {page}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision", f"choose one of {page}/commits/main"
    if isinstance(error, RemoteEntryNotFoundError):
        return "the repository has no such file", f"see {page}/tree/main; dvt_timm.push_to_hub makes such repositories"
    if status in (401, 403):
        return f"the Hub does not allow it ({status})", TOKEN_REMEDY
    if status == 429:
        return "the Hub gets too many requests (429)", "wait some minutes; with a token (HF_TOKEN) more are allowed"
    if status >= 500:
        return f"the Hub fails ({status})", "try again later; https://status.huggingface.co tells more"
    return f"the Hub answers {status} ({error.server_message or _first_line(error)})", "change what it objects to"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
