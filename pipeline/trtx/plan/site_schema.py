"""The models of the site's configuration file: closed and frozen like those of recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from trtx.errors import did_you_mean
from trtx.hardware.gpus import GPUS
from trtx.recipe.check_runners import runner_problems
from trtx.recipe.parts import Name, Part, Text, Url, section
from trtx.recipe.problems import Path, Problem
from trtx.recipe.runners import Runner
from trtx.recipe.tree import Tree, dotted
from trtx.recipe.units import Duration

NO_CREDENTIALS = "credentials are read from the environment, such as AWS_PROFILE, never from a URL"


class Remote(Part):
    """A cache that machines share."""

    name: Name = Field(description="What it is called in plans and messages.")
    url: Url = Field(description="Where it is: s3://bucket/folder, gs://bucket/folder, file:///mnt/share, memory://x.")
    mode: Literal["read", "read-write"] = Field(
        default="read", description="read-write also puts there what this machine makes; never in pull-request jobs."
    )
    trust: Literal["digest", "signed"] = Field(
        default="digest", description="signed ignores every entry that no key of trusted_keys has signed."
    )
    endpoint: Url | None = Field(default=None, description="Server of an S3-compatible service, for s3:// only.")
    timeout: Duration = Field(
        default=10.0, gt=0, description="How long it may take to answer before it is skipped, such as 10s."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"the URL holds more than a place; {NO_CREDENTIALS}")
        if parts.scheme in ("hf", "demo", "http", "https"):
            raise ValueError(f"{parts.scheme}:// cannot hold a cache")
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise ValueError("a folder is written file:///absolute/path")
        return url

    @model_validator(mode="after")
    def _check_endpoint(self) -> Remote:
        if self.endpoint is not None and not self.url.startswith("s3://"):
            raise ValueError("endpoint is for s3:// URLs")
        if self.endpoint is not None and ("@" in self.endpoint or "?" in self.endpoint):
            raise ValueError(f"the endpoint holds more than a place; {NO_CREDENTIALS}")
        return self


class Sign(Part):
    """The key that signs what this machine puts on remotes and into archives."""

    private_key: Text | None = Field(
        default=None, description="PEM file of an ed25519 key that only its owner can read; see `trtx cache keygen`."
    )
    private_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default=None, description="Environment variable that holds the PEM text instead, for CI."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Sign:
        if (self.private_key is None) == (self.private_key_env is None):
            raise ValueError("give either private_key or private_key_env")
        return self


class Cache(Part):
    """Shared caches and whom to trust."""

    remotes: Annotated[tuple[Remote, ...], Field(strict=False)] = Field(
        default=(), description="Asked in this order for what the local cache does not have."
    )
    trusted_keys: Mapping[Name, Text] = Field(default={}, description="Public keys, written ed25519:<base64>.")
    sign: Sign | None = Field(default=None, description="Signs entries.")

    @field_validator("remotes")
    @classmethod
    def _check_remotes(cls, remotes: tuple[Remote, ...]) -> tuple[Remote, ...]:
        check_names(remotes)
        return remotes

    @field_validator("trusted_keys")
    @classmethod
    def _check_keys(cls, keys: Mapping[str, str]) -> Mapping[str, str]:
        from trtx.cache.signing import decode_public_key

        for name, text in keys.items():
            try:
                decode_public_key(text)
            except ValueError as error:
                raise ValueError(f"the key '{name}': {error}") from None
        return keys


class Site(Part):
    """The whole file."""

    cache: Cache = section("Shared caches.")
    runners: dict[Name, Runner] = Field(
        default={}, description="Where steps run, by name; a recipe's runner of the same name says what differs."
    )


def check_names(remotes: Sequence[Remote]) -> None:
    """Raises ValueError when two remotes have one name."""
    names = [remote.name for remote in remotes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"two remotes are called '{twice}'")


def describe(tree: Tree, detail: Any) -> Problem:
    """One of pydantic's errors as a problem with its place, without source lines with URLs: they may hold secrets."""
    path: Path = tuple(detail["loc"])
    if path[:1] == ("runners",):
        return _describe_runner(tree, detail)
    what = re.sub(r"^(Value error|Assertion failed), ", "", detail["msg"])
    fix, at_key = "", False
    if detail["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        what, fix, at_key = f"unknown key '{path[-1]}'", did_you_mean(str(path[-1]), known), True
    elif detail["type"] == "missing":
        what, path = f"the key '{path[-1]}' is missing", path[:-1]
    elif detail["type"] == "unit":
        what, fix = str(detail["ctx"]["message"]), str(detail["ctx"]["fix"])
    place = tree.place(path)
    mark = place.key if at_key and place.key else place.value
    problem = tree.problem(mark, f"{dotted(path)}: {what}" if path and not at_key else what, fix=fix, path=path)
    hides = (bool(path) and path[-1] in ("url", "endpoint", "private_key")) or "://" in problem.source
    return Problem(**{**vars(problem), "source": ""}) if hides else problem


def _describe_runner(tree: Tree, detail: Any) -> Problem:
    """The language of runners is that of recipes, and so are the words about it."""
    from trtx.recipe.messages import explain

    message = explain(detail, tree.data)
    return tree.problem_at(message.path, message.what, why=message.why, fix=message.fix, at_key=message.at_key)


def check_site(tree: Tree, site: Site) -> Iterator[Problem]:
    """Problems that several settings of a runner show together."""
    for name, runner in site.runners.items():
        for path, what, why, fix, at_key in runner_problems(runner, GPUS):
            yield tree.problem_at(("runners", name, *path), what, why=why, fix=fix, at_key=at_key)


def _fields_at(path: Path) -> list[str]:
    """Names that a mapping of the file may have."""
    places: dict[tuple[Any, ...], type[Part]] = {(): Site, ("cache",): Cache, ("cache", "sign"): Sign}
    model = places.get(path, Remote if path[:2] == ("cache", "remotes") else Site)
    return list(model.model_fields)
