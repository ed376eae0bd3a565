"""What the hub library's exceptions mean, in words. Imported only where the hub is really asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from huggingface_hub import errors

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed


@dataclass(frozen=True)
class Asked:
    """What was asked of which hub: the words of its error messages. Holds no token, only whether there was one."""

    repo: str
    kind: str
    revision: str
    endpoint: str
    has_token: bool

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


@contextmanager
def hub_errors(asked: Asked) -> Iterator[None]:
    """Turn what the hub library raises into a TrtxError; errors of the disk pass."""
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        # Asking for a file failed, and the library looked into its cache in vain; the cause says how it failed.
        raise translate(asked, error.__cause__ or error) from error
    except tuple(MEANINGS) as error:
        raise translate(asked, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise VerificationFailed(
            f"a download of {asked.repo} is incomplete", why=first_line(error), fix="run again: finished files are kept"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_hub(asked, error) from error


def translate(asked: Asked, error: BaseException) -> TrtxError:
    """The error to show for one of the library's."""
    meaning = next((meaning for kind, meaning in MEANINGS.items() if isinstance(error, kind)), unreachable)
    return meaning(asked, error)


def first_line(error: BaseException) -> str:
    """The first line of a message; the library's own run over many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def unreachable(asked: Asked, error: BaseException) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot reach {asked.endpoint} for {asked.repo}",
        why=f"{type(error).__name__}: {first_line(error)}",
        fix="check the network and HF_ENDPOINT, or use a file:// source; the hub cache answers with HF_HUB_OFFLINE=1",
    )


def _bad_name(asked: Asked, error: BaseException) -> UsageProblem:
    return UsageProblem(
        f"hf://{asked.repo} is not the name of a repository", why=first_line(error), fix="write hf://owner/name"
    )


def _gated(asked: Asked, error: BaseException) -> UsageProblem:
    if asked.has_token:
        return UsageProblem(
            f"{asked.repo} is gated and your token has no access to it",
            why=f"{asked.endpoint} refused the token",
            fix=f"accept its terms on {asked.page} with the account of the token",
        )
    return UsageProblem(
        f"{asked.repo} is gated",
        why="no token was sent",
        fix=f"accept its terms on {asked.page}, then set HF_TOKEN",
    )


def _not_found(asked: Asked, error: BaseException) -> UsageProblem:
    """The hub answers 401 for both missing and private repositories, so that neither can be told from the other."""
    if asked.has_token:
        return UsageProblem(
            f"{asked.endpoint} has no {asked.kind} '{asked.repo}' that your token may read",
            why="the hub does not say whether it is missing or private",
            fix="check the spelling and the access rights of HF_TOKEN",
        )
    return UsageProblem(
        f"{asked.endpoint} has no public {asked.kind} '{asked.repo}'",
        why="it is missing, or private and no token was sent",
        fix="check the spelling; for a private one set HF_TOKEN",
    )


def _no_revision(asked: Asked, error: BaseException) -> UsageProblem:
    return UsageProblem(
        f"{asked.repo} has no revision '{asked.revision}'",
        why=f"{asked.endpoint} knows no such branch, tag or commit",
        fix=f"see {asked.page}/tree/main for those that exist",
    )


def _no_file(asked: Asked, error: BaseException) -> VerificationFailed:
    return VerificationFailed(
        f"a file of {asked.repo} is listed and cannot be had", why=first_line(error), fix="try again later"
    )


def _refused(asked: Asked, error: Any) -> UsageProblem | EnvironmentProblem:
    status = error.response.status_code
    if status == 401:
        return UsageProblem(
            f"{asked.endpoint} does not accept your token", why="HTTP 401", fix="make a new token and set HF_TOKEN"
        )
    if status == 403:
        return UsageProblem(
            f"your token may not read {asked.repo}", why="HTTP 403", fix="give the token read access to it"
        )
    return EnvironmentProblem(
        f"{asked.endpoint} refused {asked.repo}", why=f"HTTP {status}", fix="try again later: finished files are kept"
    )


def _no_hub(asked: Asked, error: BaseException) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{asked.endpoint} does not answer like a Hugging Face hub",
        why=first_line(error),
        fix="check HF_ENDPOINT, and whether a proxy or a login page is in between",
    )


# Subclasses before their bases.
MEANINGS: dict[type[BaseException], Callable[[Asked, Any], TrtxError]] = {
    errors.HFValidationError: _bad_name,
    errors.GatedRepoError: _gated,
    errors.RepositoryNotFoundError: _not_found,
    errors.RevisionNotFoundError: _no_revision,
    errors.RemoteEntryNotFoundError: _no_file,
    errors.HfHubHTTPError: _refused,
    errors.FileMetadataError: _no_hub,
    errors.OfflineModeIsEnabled: unreachable,
    httpx.TransportError: unreachable,
    httpx.HTTPError: _no_hub,
}
