"""What the hub library's exceptions mean, in words. Imported only where the hub is really asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from huggingface_hub import errors

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed


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
    """Turn what the hub library raises into UsageProblem, EnvironmentProblem or VerificationFailed."""
    try:
        yield
    except errors.HFValidationError as error:
        raise UsageProblem(f"hf://{asked.repo} is not the name of a repository", why=first_line(error)) from error
    except errors.GatedRepoError as error:
        raise _gated(asked) from error
    except errors.RepositoryNotFoundError as error:
        raise _not_found(asked) from error
    except errors.RevisionNotFoundError as error:
        raise UsageProblem(
            f"{asked.repo} has no revision '{asked.revision}'",
            why=f"{asked.endpoint} knows no such branch, tag or commit",
            fix=f"see {asked.page}/tree/main for those that exist",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise VerificationFailed(
            f"a file of {asked.repo} at {asked.revision} cannot be downloaded", why=first_line(error)
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(asked, "the connection failed and the local hub cache does not have it") from error
    except errors.HfHubHTTPError as error:
        raise _refused(asked, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise unreachable(asked, "HF_HUB_OFFLINE is set") from error
    except (httpx.TimeoutException, httpx.TransportError) as error:
        raise unreachable(asked, f"{type(error).__name__}: {first_line(error)}") from error
    except (errors.FileMetadataError, httpx.HTTPError) as error:
        raise EnvironmentProblem(
            f"{asked.endpoint} does not answer like a Hugging Face hub",
            why=first_line(error),
            fix="check HF_ENDPOINT, and whether a proxy or a login page is in between",
        ) from error


def unreachable(asked: Asked, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot reach {asked.endpoint} for {asked.repo}",
        why=why,
        fix="check the network and HF_ENDPOINT, or use a file:// source; the hub cache answers with HF_HUB_OFFLINE=1",
    )


def first_line(error: Exception) -> str:
    """The first line of a message; the library's own run over many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _gated(asked: Asked) -> UsageProblem:
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


def _not_found(asked: Asked) -> UsageProblem:
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


def _refused(asked: Asked, error: errors.HfHubHTTPError) -> UsageProblem | EnvironmentProblem:
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
        f"{asked.endpoint} refused {asked.repo}", why=f"HTTP {status}", fix="try again later; a download resumes"
    )
