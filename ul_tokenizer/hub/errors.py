"""What goes wrong with the hub: one class and one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors


class HubError(ValueError):
    """Something about a repository of the hub; the message is one sentence for the user."""


class RepositoryMissingError(HubError):
    """No such repository, or a private one of which this user must not know."""


class RepositoryGatedError(HubError):
    """The repository's terms have to be accepted first."""


class NoAccessError(HubError):
    """The token is wrong, or doesn't allow this."""


class RevisionMissingError(HubError):
    """The repository has no such branch, tag or commit."""


class FileMissingError(HubError):
    """The repository lacks a file."""


class OfflineError(HubError):
    """The hub can't be reached, and the cache doesn't have it."""


class DamagedDownloadError(HubError):
    """What arrived is not what the repository has."""


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's client into a `HubError`; tokens and addresses are not repeated."""
    try:
        yield
    except HubError:
        raise
    except errors.HFValidationError as error:
        raise HubError(f"Hub id must be of the form owner/name, got {repo_id!r}.") from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.FileMetadataError, OSError) as error:
        raise explain(error, repo_id, revision) from error
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise explain(error, repo_id, revision) from error


def is_unreachable(error: BaseException) -> bool:
    """Whether there was no answer, or only that of a server in trouble."""
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error) >= 500
    # The client's HTTP library has another name in each of its major versions; so have its classes' modules.
    names = {cls.__name__ for cls in type(error).__mro__}
    known = errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | ConnectionError | TimeoutError
    return isinstance(error, known) or "TransportError" in names


def explain(error: BaseException, repo_id: str, revision: str | None) -> Exception:
    """The sentence for an error of the client; OSErrors of this machine stay what they are."""
    # Order matters: a gated repository counts as a missing one, too.
    if isinstance(error, errors.GatedRepoError):
        return RepositoryGatedError(
            f"Hub repository {repo_id} is gated: accept its terms on the hub and log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return RepositoryMissingError(
            f"{repo_id} is no folder that exists, and no repository of the hub either unless it needs `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RevisionMissingError(f"Hub repository {repo_id} has no revision {revision!r}.")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return FileMissingError(f"Hub repository {repo_id} lacks a file that it should have.")
    if is_unreachable(error):
        return OfflineError(
            f"{repo_id} is no folder that exists, it is not in the hub's cache, and the hub can't be reached."
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = _status(error)
        if status in (401, 403):
            return NoAccessError(
                f"Hub repository {repo_id} refuses this: log in with `hf auth login`, and a token that may do it."
            )
        return HubError(f"The hub refuses what was asked of {repo_id}, with status {status}.")
    if isinstance(error, errors.FileMetadataError):
        return HubError(f"The hub's answer about {repo_id} can't be understood.")
    return error if isinstance(error, Exception) else HubError(str(error))


def _status(error: errors.HfHubHTTPError) -> int:
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)
