"""What a site configures once for all recipes: `~/.config/trtx/config.yaml`.

    cache:
      remotes:
        - {name: shared, url: s3://bucket/trtx, mode: read-write, trust: signed}
      trusted_keys: {ci: "ed25519:…"}
      sign: {private_key: ~/.config/trtx/signing.pem}
    runners:
      cluster: {type: slurm, account: inference, partition: gpu}

`$TRTX_CONFIG` names another file; `$TRTX_CACHE_REMOTES` takes the place of `remotes`, for CI.
A machine without either pays for two look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.plan.site_schema import Remote, Site
    from trtx.recipe.runners import Runner

REMOTES_VARIABLE = "TRTX_CACHE_REMOTES"
CONFIG_VARIABLE = "TRTX_CONFIG"

# Variables that a CI service sets for jobs of proposed changes, and how the value begins that says so; "false" never
# does. Sources: the services' references of their variables.
PULL_REQUEST_VARIABLES: tuple[tuple[str, str], ...] = (
    ("GITHUB_EVENT_NAME", "pull_request"),
    ("GITHUB_HEAD_REF", ""),  # GitHub, Gitea and Forgejo set it for pull requests only.
    ("CI_PIPELINE_SOURCE", "merge_request_event"),
    ("CI_PIPELINE_SOURCE", "external_pull_request_event"),
    ("CI_MERGE_REQUEST_ID", ""),
    ("CI_MERGE_REQUEST_IID", ""),
    ("CI_EXTERNAL_PULL_REQUEST_IID", ""),
    ("BITBUCKET_PR_ID", ""),
    ("SYSTEM_PULLREQUEST_PULLREQUESTID", ""),
    ("BUILD_REASON", "PullRequest"),
    ("BUILDKITE_PULL_REQUEST", ""),
    ("CIRCLE_PULL_REQUEST", ""),
    ("DRONE_PULL_REQUEST", ""),
    ("TRAVIS_PULL_REQUEST", ""),
    ("APPVEYOR_PULL_REQUEST_NUMBER", ""),
    ("CHANGE_ID", ""),  # Jenkins multibranch
    ("CODEBUILD_WEBHOOK_EVENT", "PULL_REQUEST"),
    ("CODEBUILD_SOURCE_VERSION", "pr/"),
    ("CI_PIPELINE_EVENT", "pull_request"),  # Woodpecker
    ("CIRRUS_PR", ""),
    ("SEMAPHORE_GIT_PR_NUMBER", ""),
    ("PULL_NUMBER", ""),  # Prow
)


def pull_request_variable(environ: Mapping[str, str]) -> str | None:
    """The variable that says this is a CI job of a proposed change, whose code nobody has accepted yet; else None."""
    for name, beginning in PULL_REQUEST_VARIABLES:
        value = environ.get(name, "")
        if value and value != "false" and value.startswith(beginning):
            return name
    return None


def config_path(environ: Mapping[str, str]) -> Path:
    """`$TRTX_CONFIG`, else `$XDG_CONFIG_HOME/trtx/config.yaml`, else `~/.config/trtx/config.yaml`; absolute."""
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE]).expanduser().absolute()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return (Path(base).expanduser() / "trtx" / "config.yaml").absolute()


def load_site(environ: Mapping[str, str]) -> Site | None:
    """The site's configuration; None when there is none.

    Raises RecipeInvalid with all problems of the file, UsageProblem for what stands in the environment.
    """
    path, remotes = config_path(environ), environ.get(REMOTES_VARIABLE)
    text = _read(path, required=bool(environ.get(CONFIG_VARIABLE)))
    if text is None and remotes is None:
        return None
    from trtx.plan.site_schema import Site

    site = read_site(text, path) if text is not None else Site()
    if remotes is None:
        return site
    cache = site.cache.model_copy(update={"remotes": parse_remotes(remotes)})
    return site.model_copy(update={"cache": cache})


def site_runners(environ: Mapping[str, str]) -> Mapping[str, Runner]:
    """The runners that the site's configuration has, by name. Raises what load_site raises."""
    site = load_site(environ)
    return site.runners if site else {}


def _read(path: Path, *, required: bool) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not required:
            return None
        raise UsageProblem(f"there is no file {path}", fix=f"{CONFIG_VARIABLE} names it: correct or unset it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"cannot read {path}", why=str(error)) from error


def read_site(text: str, path: Path) -> Site:
    """Check a configuration. Raises RecipeInvalid with all its problems, each with its place."""
    from pydantic import ValidationError

    from trtx.plan.site_schema import Site, check_site, describe
    from trtx.recipe.problems import RecipeInvalid
    from trtx.recipe.tree import Unreadable, read_tree

    lines = [line.strip() for line in text.splitlines()]
    if all(not line or line.startswith("#") or line == "---" for line in lines):
        return Site()
    try:
        tree = read_tree(_shown(path), text)
    except Unreadable as error:
        what = error.problem.what.replace("a recipe is", "a configuration is")
        fix = error.problem.fix if what == error.problem.what else "begin with `cache:` or `runners:`"
        raise RecipeInvalid([replace(error.problem, what=what, fix=fix)]) from None
    if tree.problems:
        raise RecipeInvalid(tree.problems)
    try:
        site = Site.model_validate(tree.data)
    except ValidationError as error:
        raise RecipeInvalid([describe(tree, detail) for detail in error.errors()]) from None
    if found := list(check_site(tree, site)):
        raise RecipeInvalid(found)
    return site


def _shown(path: Path) -> str:
    """A path as people write it: relative to the home folder where it is below it."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def parse_remotes(text: str) -> tuple[Remote, ...]:
    """`URL[;field=value…]`, comma-separated, as in `s3://bucket/trtx;mode=read-write`; an empty text is no remotes.

    The fields are those of the file; a remote without `name` is called remote1, remote2 …
    """
    from pydantic import ValidationError

    from trtx.plan.site_schema import Remote, check_names

    remotes = []
    try:
        for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
            url, *settings = part.split(";")
            fields = {name: value for name, _, value in (setting.partition("=") for setting in settings)}
            remotes.append(Remote.model_validate({"name": f"remote{number}", "url": url, **fields}))
        check_names(remotes)
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, detail["loc"])) or "the list"
        # Without the value: it may hold credentials.
        raise UsageProblem(
            f"{REMOTES_VARIABLE}: {field}: {detail['msg'].removeprefix('Value error, ')}",
            fix="write URL;mode=read-write;trust=signed, several with commas between them",
        ) from None
    except ValueError as error:
        raise UsageProblem(f"{REMOTES_VARIABLE}: {error}", fix="give every remote its own name") from None
    return tuple(remotes)
