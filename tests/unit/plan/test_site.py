"""The site's configuration: closed, with a place for every problem, and without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trtx.cache.remote import Remote
from trtx.cache.remote_push import WritableRemote
from trtx.cache.signing import make_key_file
from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.plan.remotes import make_signer, open_remotes
from trtx.plan.site import config_path, load_site, parse_remotes, pull_request_variable, read_site
from trtx.recipe.problems import RecipeInvalid

PUBLIC = "ed25519:" + "A" * 43 + "="
GOOD = f"""\
cache:
  remotes:
    - {{name: shared, url: "s3://bucket/trtx", mode: read-write, timeout: 3s}}
    - {{name: share, url: "file:///mnt/cache", trust: signed}}
  trusted_keys: {{ci: "{PUBLIC}"}}
"""


def write(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return {"TRTX_CONFIG": str(path)}


def test_a_machine_without_configuration_has_no_site(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load_site(environ) is None
    assert open_remotes(environ) is None


def test_the_file_is_found_by_the_xdg_rules() -> None:
    assert config_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/trtx/config.yaml")
    assert config_path({}) == Path.home() / ".config/trtx/config.yaml"
    assert config_path({"TRTX_CONFIG": "/y/z.yaml", "XDG_CONFIG_HOME": "/x"}) == Path("/y/z.yaml")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "cache: {}\n"])
def test_an_empty_file_configures_nothing(tmp_path: Path, text: str) -> None:
    assert open_remotes(write(tmp_path, text)) is None


def test_remotes_keep_their_order_and_settings(tmp_path: Path) -> None:
    remotes = open_remotes(write(tmp_path, GOOD))
    assert remotes is not None
    shared, share = remotes.all
    assert isinstance(shared, WritableRemote)
    assert (shared.spec.trust, shared.spec.timeout_s) == ("digest", 3.0)
    assert type(share) is Remote
    assert (share.spec.trust, share.spec.timeout_s) == ("signed", 10.0)
    assert remotes.notes() == []


def test_without_a_key_nothing_is_put_where_entries_must_be_signed(tmp_path: Path) -> None:
    text = GOOD.replace("trust: signed", "trust: signed, mode: read-write")
    remotes = open_remotes(write(tmp_path, text))
    assert remotes is not None
    assert [remote.name for remote in remotes.writable] == ["shared"]
    assert remotes.notes() == ["remote share is only read: its entries must be signed, and cache.sign names no key"]
    make_key_file(tmp_path / "key.pem")
    remotes = open_remotes(write(tmp_path, f"{text}  sign: {{private_key: {tmp_path}/key.pem}}\n"))
    assert remotes is not None
    assert len(remotes.writable) == 2


def test_offline_there_are_no_remotes(tmp_path: Path) -> None:
    assert open_remotes(write(tmp_path, GOOD) | {"TRTX_OFFLINE": "1"}) is None


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("cache:\n  remote: []\n", (2, 3), "unknown key 'remote'"),
        ("runner: x\n", (1, 1), "unknown key 'runner'"),
        ("cache:\n  remotes:\n    - {name: x}\n", (3, 7), "the key 'url' is missing"),
        ("cache:\n  remotes:\n    - {name: x, url: 'file:///x', mode: write}\n", (3, 41), "mode"),
        ("cache:\n  remotes:\n    - {name: X Y, url: 'file:///x'}\n", (3, 14), "name"),
        ("cache:\n  remotes:\n    - {name: x, url: 'file:///x', timeout: 10}\n", (3, 44), "needs a unit"),
        ("cache:\n  remotes:\n    - {name: x, url: 'file:///x', timeout: 0s}\n", (3, 44), "greater than 0"),
        ("cache:\n  remotes:\n    - {name: x, url: 'https://x/y'}\n", (3, 22), "cannot hold a cache"),
        ("cache:\n  remotes:\n    - {name: x, url: 'file://share/x'}\n", (3, 22), "file:///absolute/path"),
        ("cache:\n  remotes:\n    - {name: x, url: 'gs://b', endpoint: 'http://x'}\n", (3, 7), "endpoint is for s3://"),
        ("cache:\n  remotes:\n  - &r {name: x, url: 'file:///x'}\n  - *r\n", (3, 3), "two remotes are called 'x'"),
        ("cache:\n  trusted_keys: {ci: nonsense}\n", (2, 17), "begins with ed25519:"),
        ("cache:\n  trusted_keys: {ci: 'ed25519:AAAA'}\n", (2, 17), "32 bytes"),
        ("cache:\n  sign: {}\n", (2, 9), "either private_key or private_key_env"),
        ("cache: [\n", (2, 1), "not YAML"),
        ("- a\n", (1, 1), "a configuration is a mapping"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_place(text: str, where: tuple[int, int], what: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        read_site(text, Path("/etc/trtx.yaml"))
    rendered = caught.value.render()
    assert what in rendered
    assert f"/etc/trtx.yaml:{where[0]}:{where[1]}: error:" in rendered


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://bucket/x?secret=1", "gs://secret@bucket"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        read_site(f"cache:\n  remotes:\n    - {{name: x, url: '{url}'}}\n", Path("/x"))
    assert "credentials are read from the environment" in caught.value.render()
    assert "secret" not in caught.value.render().replace("secrets", "")
    with pytest.raises(UsageProblem) as refused:
        parse_remotes(url)
    assert "secret" not in refused.value.render()


def test_all_problems_are_reported_at_once() -> None:
    text = "cache:\n  x: 1\n  remotes:\n    - {name: x, url: nonsense, mode: w}\n"
    with pytest.raises(RecipeInvalid) as caught:
        read_site(text, Path("/x"))
    assert len(caught.value.problems) == 3


def test_a_named_file_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="there is no file"):
        load_site({"TRTX_CONFIG": str(tmp_path / "none.yaml")})
    with pytest.raises(UsageProblem, match="cannot read"):
        load_site({"TRTX_CONFIG": str(tmp_path)})


def test_the_environment_takes_the_place_of_the_files_remotes(tmp_path: Path) -> None:
    variables = {"TRTX_CACHE_REMOTES": "s3://b/x;mode=read-write;endpoint=http://e:1, file:///y;name=nfs;timeout=2s"}
    remotes = open_remotes(write(tmp_path, GOOD) | variables)
    assert remotes is not None
    one, two = remotes.all
    assert (one.name, one.spec.url, one.spec.writable, one.spec.endpoint) == ("remote1", "s3://b/x", True, "http://e:1")
    assert (two.name, two.spec.url, two.spec.writable, two.spec.timeout_s) == ("nfs", "file:///y", False, 2.0)
    assert open_remotes(write(tmp_path, GOOD) | {"TRTX_CACHE_REMOTES": ""}) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nonsense", "url"),
        ("file:///x;mode=write", "mode"),
        ("file:///x;speed=9", "speed"),
        ("file:///x;name=a,file:///y;name=a", "two remotes are called 'a'"),
        ("file:///x;mode", "mode"),
    ],
)
def test_a_wrong_variable_is_a_usage_problem(text: str, what: str) -> None:
    with pytest.raises(UsageProblem, match=f"TRTX_CACHE_REMOTES: .*{what}"):
        parse_remotes(text)


@pytest.mark.parametrize(
    "variables",
    [
        {"GITHUB_EVENT_NAME": "pull_request"},
        {"GITHUB_EVENT_NAME": "pull_request_target"},
        {"CI_MERGE_REQUEST_ID": "5"},
        {"CI_PIPELINE_SOURCE": "merge_request_event"},
        {"BUILDKITE_PULL_REQUEST": "12"},
        {"SYSTEM_PULLREQUEST_PULLREQUESTID": "3"},
        {"CHANGE_ID": "PR-1"},
        {"GITHUB_HEAD_REF": "feature"},
        {"BUILD_REASON": "PullRequest"},
        {"CODEBUILD_WEBHOOK_EVENT": "PULL_REQUEST_CREATED"},
        {"CODEBUILD_WEBHOOK_EVENT": "PULL_REQUEST_UPDATED"},
        {"CODEBUILD_SOURCE_VERSION": "pr/12"},
        {"CI_PIPELINE_EVENT": "pull_request"},
        {"CI_PIPELINE_EVENT": "pull_request_closed"},
        {"CIRRUS_PR": "12"},
        {"SEMAPHORE_GIT_PR_NUMBER": "12"},
        {"PULL_NUMBER": "12"},
    ],
)
def test_jobs_of_pull_requests_only_read(tmp_path: Path, variables: dict[str, str]) -> None:
    assert pull_request_variable(variables) in variables
    signing = "  sign: {private_key_env: NO_SUCH_VARIABLE}\n"
    for environ in (
        write(tmp_path, GOOD + signing) | variables,
        {"TRTX_CACHE_REMOTES": "file:///x;mode=read-write", "XDG_CONFIG_HOME": str(tmp_path)} | variables,
    ):
        remotes = open_remotes(environ)
        assert remotes is not None
        assert remotes.writable == []
        assert not any(hasattr(remote, "push") for remote in remotes.all)
        assert "pull-request job" in remotes.notes()[0]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"GITHUB_EVENT_NAME": "push"},
        {"GITHUB_HEAD_REF": ""},
        {"BUILDKITE_PULL_REQUEST": "false"},
        {"CI_PIPELINE_SOURCE": "push"},
        {"BUILD_REASON": "IndividualCI"},
        {"CODEBUILD_WEBHOOK_EVENT": "PUSH"},
        {"CODEBUILD_SOURCE_VERSION": "refs/heads/main"},
        {"CI_PIPELINE_EVENT": "push"},
    ],
)
def test_other_jobs_may_write(variables: dict[str, str]) -> None:
    assert pull_request_variable(variables) is None


def sign_with(text: str, environ: dict[str, str] | None = None) -> Any:
    return make_signer(read_site(f"cache:\n  sign: {{{text}}}\n", Path("/x")), environ or {})


def test_the_signing_key_comes_from_a_file_or_a_variable(tmp_path: Path) -> None:
    public = make_key_file(tmp_path / "key.pem")
    assert sign_with(f"private_key: {tmp_path}/key.pem").public_key == public
    pem = (tmp_path / "key.pem").read_text()
    assert sign_with("private_key_env: SIGNING_KEY", {"SIGNING_KEY": pem}).public_key == public
    with pytest.raises(UsageProblem, match="SIGNING_KEY is not set"):
        sign_with("private_key_env: SIGNING_KEY")


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_key_file(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(EnvironmentProblem, match="others can read"):
        sign_with(f"private_key: {tmp_path}/key.pem")
