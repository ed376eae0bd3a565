"""Asks container registries which digest a tag names: the OCI distribution protocol, as anybody may read it.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md (pulling manifests) and
https://distribution.github.io/distribution/spec/auth/token/ (tokens). No credentials are sent.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed

if TYPE_CHECKING:
    import httpx

# Indexes first: the digest of an image for several architectures is that of its index.
ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){3}")
DOCKER_HUB = "docker.io"
TIMEOUT_S = 10.0
# The specification lets registries refuse larger manifests.
MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True)
class Image:
    """A reference in parts: `ghcr.io/owner/name:tag`; Docker's own names are written short."""

    host: str
    repository: str
    tag: str

    @property
    def is_loopback(self) -> bool:
        """Registries of this machine speak plain HTTP, as Docker has it."""
        name = self.host.rpartition(":")[0] or self.host
        return name == "localhost" or LOOPBACK.fullmatch(name) is not None


def split_reference(reference: str) -> Image:
    """The parts of a well-formed reference without digest; `python:3.12` is docker.io/library/python:3.12.

    Rules: https://pkg.go.dev/github.com/distribution/reference#ParseNormalizedNamed
    """
    head, slash, rest = reference.partition("/")
    has_host = bool(slash) and ("." in head or ":" in head or head == "localhost")
    host, path = (head, rest) if has_host else (DOCKER_HUB, reference)
    repository, colon, tag = path.partition(":")
    if host in (DOCKER_HUB, "index.docker.io"):
        host, repository = "registry-1.docker.io", repository if "/" in repository else f"library/{repository}"
    return Image(host, repository, tag if colon else "latest")


def ask_digest(reference: str) -> str:
    """The digest that a tag names now, `sha256:…`.

    Raises UsageProblem when the registry has no such image, VerificationFailed when its answer contradicts itself,
    EnvironmentProblem when it cannot be reached or does not say.
    """
    import httpx

    image = split_reference(reference)
    scheme = "http" if image.is_loopback else "https"
    url = f"{scheme}://{image.host}/v2/{image.repository}/manifests/{image.tag}"
    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True, headers={"Accept": ACCEPT}) as client:
            return _ask(client, url, reference)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise EnvironmentProblem(
            f"the registry {image.host} does not say which digest {reference} is",
            why=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="check the network, then run `trtx lock` again",
        ) from error


def _ask(client: httpx.Client, url: str, reference: str) -> str:
    answer = client.head(url)
    if answer.status_code == UNAUTHORIZED:
        client.headers["Authorization"] = f"Bearer {_get_token(client, answer, reference)}"
        answer = client.head(url)
    _refuse(answer, reference)
    stated = answer.headers.get("Docker-Content-Digest", "")
    if answer.is_success and DIGEST.fullmatch(stated):
        return str(stated)
    # Registries need not state it, and some answer no HEAD: then the manifest itself is read.
    return _read_manifest(client, url, reference)


def _read_manifest(client: httpx.Client, url: str, reference: str) -> str:
    """The digest of a manifest's bytes, held against what the registry states."""
    body = b""
    with client.stream("GET", url) as answer:
        _refuse(answer, reference)
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > MAX_MANIFEST_BYTES:
                raise ValueError(f"the manifest is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    stated, found = answer.headers.get("Docker-Content-Digest"), f"sha256:{hashlib.sha256(body).hexdigest()}"
    if stated not in (None, found):
        raise VerificationFailed(
            f"the registry contradicts itself about {reference}",
            why=f"it states {stated} and sends {found}",
            fix="look for a proxy in between",
        )
    return found


def _get_token(client: httpx.Client, answer: httpx.Response, reference: str) -> str:
    """A token that anybody gets, from where the registry says. Raises EnvironmentProblem when there is none."""
    scheme, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
    fields = dict(CHALLENGE.findall(rest))
    realm = fields.pop("realm", "")
    if scheme.lower() != "bearer" or not realm:
        raise _needs_login(reference, "it offers no tokens to everybody")
    fields.pop("error", None)
    given = client.get(realm, params=fields)
    if given.status_code in (UNAUTHORIZED, FORBIDDEN):
        raise _needs_login(reference, f"{realm} answered {given.status_code}")
    given.raise_for_status()
    body: dict[str, Any] = given.json()
    token = body.get("token") or body.get("access_token") if isinstance(body, dict) else None
    if not isinstance(token, str):
        raise ValueError(f"{realm} gives no token")
    return token


def _refuse(answer: httpx.Response, reference: str) -> None:
    """Raises for an answer that says no; HEAD may be unknown to a registry, which is no refusal."""
    if answer.status_code == NOT_FOUND:
        raise UsageProblem(
            f"the registry has no image {reference}",
            why=f"{answer.request.url.host} answered 404",
            fix="correct package.base or engine.container in the recipe",
        )
    if answer.status_code in (UNAUTHORIZED, FORBIDDEN):
        raise _needs_login(reference, f"{answer.request.url.host} answered {answer.status_code}")
    if answer.request.method == "GET" or answer.is_server_error:
        answer.raise_for_status()


def _needs_login(reference: str, why: str) -> TrtxError:
    return EnvironmentProblem(
        f"the registry shows {reference} only to those who log in",
        why=why,
        fix="write the digest into package.base or engine.container: name:tag@sha256:…",
    )
