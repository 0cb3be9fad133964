"""What failed between the Hub, its client and the disk, and the way out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
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

CLOSED_CLIENT = "client has been closed"  # what huggingface_hub 1.26 says where no connection can be made
TOKEN_REMEDY = "check HF_TOKEN, or `hf auth login` with a token that may do this"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explained(action: str, repo: str) -> Iterator[None]:
    """Raise errors of the Hub's client and of the disk anew, with a text that says what failed, why, and what to do.

    Nothing but calls of the client belongs inside.

    Args:
        action: what is tried, as in "get user/repo/config.json".
        repo: "user/repo".

    Raises:
        OSError: if the Hub, the network or the disk fails; the class is the client's own where it has one.
        ValueError: if `repo` is no name of a repository.
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
    """Find the OSError or HTTPError behind a RuntimeError, which xet and the client's uploads raise for any failure."""
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
    """Make an error of the same class where the class says something, else a ConnectionError."""
    if isinstance(error, HfHubHTTPError):
        return type(error)(text, response=error.response)
    if isinstance(error, LocalEntryNotFoundError):
        return LocalEntryNotFoundError(text)
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, text)
    return ConnectionError(text)


def _reason(error: BaseException, repo: str) -> tuple[str, str]:
    """Say (what is wrong, what to do)."""
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
    """Say (what is wrong, what to do) of a file that is neither in the cache nor to be had."""
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
    """Say (what is wrong, what to do) of an answer of the Hub that is an error."""
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
