"""Errors of the hub: one class and one sentence for each cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors


class HubError(ValueError):
    """A request about a hub repository failed; the message is one sentence for the user."""


class RepositoryMissingError(HubError):
    """The repository does not exist, or it is private and the user may not see it."""


class RepositoryGatedError(HubError):
    """The user must first accept the terms of the repository."""


class NoAccessError(HubError):
    """The token is missing or wrong, or it does not allow the request."""


class RevisionMissingError(HubError):
    """The repository has no such branch, tag or commit."""


class FileMissingError(HubError):
    """The repository lacks a file."""


class OfflineError(HubError):
    """The hub can't be reached, and the files are not in the cache."""


class DamagedDownloadError(HubError):
    """A downloaded file differs from the file in the repository."""


# The first class that fits decides: for the client, a gated repository is also a missing one.
_SENTENCES: tuple[tuple[type[Exception], type[HubError], str], ...] = (
    (errors.HFValidationError, HubError, "Hub id must be of the form owner/name, got {repo_id!r}."),
    (
        errors.GatedRepoError,
        RepositoryGatedError,
        "Hub repository {repo_id} is gated: accept its terms on its web page, then log in with `hf auth login`.",
    ),
    (
        errors.RepositoryNotFoundError,
        RepositoryMissingError,
        "{repo_id} is neither a local folder nor a repository of the hub; a private repository needs `hf auth login`.",
    ),
    (errors.RevisionNotFoundError, RevisionMissingError, "Hub repository {repo_id} has no revision {revision!r}."),
    (
        errors.RemoteEntryNotFoundError,
        FileMissingError,
        "A file of hub repository {repo_id} is missing although the hub lists it.",
    ),
    (errors.FileMetadataError, HubError, "The hub's answer about {repo_id} can't be understood."),
)
_UNREACHABLE = "{repo_id} is neither a local folder nor in the hub's cache, and the hub can't be reached."
_DENIED = "Access to hub repository {repo_id} was denied: log in with `hf auth login`, with a token that allows this."
_REFUSED = "The hub refused a request about {repo_id} with status {status}."


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's client into a `HubError` with the original as its cause.

    Other errors pass unchanged, for example a full disk. Messages contain neither tokens nor addresses.

    Raises:
        HubError: what the client found wrong, in one sentence.
    """
    try:
        yield
    except Exception as error:
        explanation = _explain(error, repo_id, revision)
        if explanation is None:
            raise
        raise explanation from error


def offline_error(repo_id: str) -> OfflineError:
    """The error for files that are not cached while the hub can't be asked."""
    return OfflineError(_UNREACHABLE.format(repo_id=repo_id))


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer, or answered with a server error."""
    if isinstance(error, errors.HfHubHTTPError):
        return status_of(error) >= 500
    # The client's HTTP library has a different name in each major version, so its errors are known by a base's name.
    names = {cls.__name__ for cls in type(error).__mro__}
    known = errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | ConnectionError | TimeoutError
    return isinstance(error, known) or "TransportError" in names


def _explain(error: Exception, repo_id: str, revision: str | None) -> HubError | None:
    """The `HubError` for an error of the client; None for any other error."""
    for client_class, our_class, sentence in _SENTENCES:
        if isinstance(error, client_class):
            return our_class(sentence.format(repo_id=repo_id, revision=revision))
    if is_unreachable(error):
        return offline_error(repo_id)
    if isinstance(error, errors.HfHubHTTPError):
        status = status_of(error)
        if status in (401, 403):
            return NoAccessError(_DENIED.format(repo_id=repo_id))
        return HubError(_REFUSED.format(repo_id=repo_id, status=status))
    return None


def status_of(error: errors.HfHubHTTPError) -> int:
    """The HTTP status of an answer; 0 if there was none."""
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)
