"""hf:// against a hub on loopback."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from support.hub import Hub, Repository, commit_of
from unit.sources.conftest import MODEL_FILES, OTHER_FILES

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed
from trtx.models.sources import hf
from trtx.models.sources.base import Request, find_source
from trtx.models.sources.hub import read_hub

URL = "hf://owner/tiny"
SECRET = "hf_secret_of_mine"


class World:
    """A hub and a user with a cache of their own."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.environ = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(folder / "hf"),
            "HOME": str(folder),
            "TRTX_CACHE_DIR": str(folder / "trtx"),
        }
        self.repository = Repository({**MODEL_FILES, **OTHER_FILES}, references=("main", "v1"))
        hub.repositories["models/owner/tiny"] = self.repository

    def request(self, url: str = URL, revision: str | None = None, **options: object) -> Request:
        environ = self.environ | dict(options.pop("environ", {}))  # type: ignore[call-overload]
        return Request(url, options.pop("kind", "model"), revision, environ=environ, **options)  # type: ignore[arg-type]

    def fetch(self, request: Request, commit: str | None = None, name: str = "out") -> Path:
        output = self.folder / name
        output.mkdir()
        identity = commit or self.repository.commit
        find_source(request.url).fetch(request, identity, output, lambda done, total, unit: None)
        return output


@pytest.fixture
def world(hub: Hub, tmp_path: Path) -> World:
    return World(hub, tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits a second between attempts; nobody here does."""
    clock = types.SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)


def ranges(hub: Hub) -> list[str]:
    """The ranges asked for, in order."""
    return [headers["range"] for _, path, headers in hub.requests if "range" in headers and path.startswith("cdn/")]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_branch_is_pinned_to_the_commit_it_names(world: World) -> None:
    resolved = hf.resolve(world.request(revision="v1"))
    assert resolved.identity == world.repository.commit
    assert resolved.config == json.loads(MODEL_FILES["config.json"])
    assert hf.resolve(world.request(revision=world.repository.commit)).identity == world.repository.commit


def test_a_commit_is_asked_of_the_hub_once(world: World) -> None:
    request = world.request(revision=world.repository.commit)
    first = hf.resolve(request)
    world.hub.requests.clear()
    assert hf.resolve(request) == first
    assert hf.resolve(world.request(revision=world.repository.commit, environ={"HF_HUB_OFFLINE": "1"})) == first
    assert world.hub.requests == []
    (memo,) = (world.folder / "trtx" / "memo").iterdir()
    memo.write_text("damaged")
    assert hf.resolve(request) == first
    hf.resolve(world.request(revision="main"))
    assert any("revision/main" in path for _, path, _ in world.hub.requests)


def test_resolving_downloads_no_weights(world: World) -> None:
    hf.resolve(world.request())
    assert not any("model.safetensors" in path for _, path, _ in world.hub.requests)


def test_exactly_the_needed_files_are_fetched_unchanged(world: World) -> None:
    output = world.fetch(world.request())
    assert names(output) == set(MODEL_FILES)
    assert all((output / name).read_bytes() == content for name, content in MODEL_FILES.items())


def test_a_folder_inside_a_repository_is_a_model(world: World) -> None:
    world.repository.files = {f"models/small/{name}": content for name, content in MODEL_FILES.items()}
    request = world.request(f"{URL}/models/small")
    assert hf.resolve(request).config["model_type"] == "llama"
    assert names(world.fetch(request)) == set(MODEL_FILES)


def test_progress_counts_bytes_up_to_the_total(world: World) -> None:
    seen: list[tuple[int, int, str]] = []
    (world.folder / "out").mkdir()
    hf.fetch(world.request(), world.repository.commit, world.folder / "out", lambda *report: seen.append(report))
    total = sum(map(len, MODEL_FILES.values()))
    assert seen[-1] == (total, total, "bytes")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_what_the_hub_cache_holds_is_not_downloaded_again(world: World) -> None:
    world.fetch(world.request())
    world.hub.requests.clear()
    world.fetch(world.request(), name="again")
    assert [path for method, path, _ in world.hub.requests if method == "GET" and "api" not in path] == []


def test_a_dropped_connection_is_resumed_where_it_broke(
    world: World, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    world.hub.cuts["model.safetensors"] = [10_000]
    output = world.fetch(world.request())
    assert (output / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    assert ranges(world.hub) == ["bytes=10000-"]


def test_after_a_download_was_given_up_the_next_run_fetches_only_what_is_missing(world: World, impatient: None) -> None:
    world.hub.cuts["model.safetensors"] = [0] * 6
    with pytest.raises(EnvironmentProblem, match="cannot reach"):
        world.fetch(world.request())
    world.hub.requests.clear()
    world.hub.cuts.clear()
    output = world.fetch(world.request(), name="again")
    assert (output / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    fetched = {
        path.rpartition("/")[2] for method, path, _ in world.hub.requests if method == "GET" and "api" not in path
    }
    assert fetched == {"model.safetensors", "tokenizer.json"}


def test_damaged_bytes_are_refused_and_removed_from_the_hub_cache(world: World) -> None:
    world.hub.corrupt.add("model.safetensors")
    with pytest.raises(VerificationFailed, match=r"model\.safetensors of owner/tiny is damaged"):
        world.fetch(world.request())
    world.hub.corrupt.clear()
    output = world.fetch(world.request(), name="again")
    assert (output / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


def test_a_damaged_small_file_is_refused_too(world: World) -> None:
    world.hub.corrupt.add("tokenizer.json")
    with pytest.raises(VerificationFailed, match=r"tokenizer\.json of owner/tiny is damaged"):
        world.fetch(world.request())


def test_a_missing_shard_is_named(world: World) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    del world.repository.files["model.safetensors"]
    world.repository.files["model.safetensors.index.json"] = json.dumps(index).encode()
    world.repository.files["model-00001-of-00002.safetensors"] = b"first"
    with pytest.raises(VerificationFailed) as caught:
        world.fetch(world.request())
    assert "model-00002-of-00002.safetensors" in caught.value.why


def expect(kind: type[TrtxError], what: str, request: Request) -> TrtxError:
    with pytest.raises(kind) as caught:
        hf.resolve(request)
    error = caught.value
    assert what in error.what
    assert error.fix
    assert SECRET not in error.render()
    assert "\n" not in error.what + error.why + error.fix
    return error


def test_a_repository_that_is_not_there(world: World) -> None:
    error = expect(UsageProblem, "has no public model 'owner/none'", world.request("hf://owner/none"))
    assert "HF_TOKEN" in error.fix


def test_a_private_repository_needs_a_token_that_may_read_it(world: World) -> None:
    world.repository.private = True
    world.hub.tokens.update({SECRET: {"owner/tiny"}, "hf_other": set()})
    expect(UsageProblem, "has no public model", world.request())
    expect(UsageProblem, "that your token may read", world.request(environ={"HF_TOKEN": "hf_other"}))
    request = world.request(environ={"HF_TOKEN": SECRET})
    assert hf.resolve(request).identity == world.repository.commit
    assert names(world.fetch(request)) == set(MODEL_FILES)


def test_a_token_stored_by_a_login_is_used(world: World) -> None:
    world.repository.private = True
    world.hub.tokens[SECRET] = {"owner/tiny"}
    (world.folder / "hf").mkdir()
    (world.folder / "hf" / "token").write_text(SECRET + "\n")
    assert hf.resolve(world.request()).identity == world.repository.commit


def test_a_token_that_is_wrong(world: World) -> None:
    expect(UsageProblem, "does not accept your token", world.request(environ={"HF_TOKEN": SECRET}))


def test_a_gated_repository_says_where_to_accept_its_terms(world: World) -> None:
    world.repository.gated = True
    world.hub.tokens[SECRET] = set()
    error = expect(UsageProblem, "owner/tiny is gated", world.request())
    assert f"{world.hub.endpoint}/owner/tiny" in error.fix
    expect(UsageProblem, "your token has no access", world.request(environ={"HF_TOKEN": SECRET}))


def test_the_token_is_in_no_text_of_ours(world: World) -> None:
    world.hub.tokens[SECRET] = set()
    request = world.request(environ={"HF_TOKEN": SECRET})
    resolved = hf.resolve(request)
    assert SECRET not in repr(request) + repr(resolved) + repr(read_hub(request, "main"))
    assert any(SECRET in headers.get("authorization", "") for _, _, headers in world.hub.requests)


def test_a_revision_that_is_not_there(world: World) -> None:
    expect(UsageProblem, "owner/tiny has no revision 'v9'", world.request(revision="v9"))


def test_a_model_without_safetensors(world: World) -> None:
    del world.repository.files["model.safetensors"]
    error = expect(UsageProblem, "has no safetensors weights", world.request())
    assert "pickles" in error.why
    output = world.fetch(world.request(allow_pickle=True))
    assert "pytorch_model.bin" in names(output)


def test_a_folder_that_is_not_there(world: World) -> None:
    expect(UsageProblem, "owner/tiny has no 'nowhere'", world.request(f"{URL}/nowhere"))


@pytest.mark.parametrize("url", ["hf://tiny", "hf://", "hf://owner/tiny@main"])
def test_a_url_that_names_no_repository(world: World, url: str) -> None:
    expect(UsageProblem, "does not name a repository", world.request(url))


def test_a_name_the_hub_cannot_have(world: World) -> None:
    expect(UsageProblem, "is not the name of a repository", world.request("hf://owner/ti..ny"))


def test_a_hub_that_cannot_be_reached(world: World) -> None:
    request = world.request(environ={"HF_ENDPOINT": "http://127.0.0.1:1"})
    error = expect(EnvironmentProblem, "cannot reach http://127.0.0.1:1", request)
    assert "refused" in error.why
    with pytest.raises(EnvironmentProblem):
        world.fetch(request)


def test_a_hub_that_is_out_of_order(world: World, impatient: None) -> None:
    world.hub.down = True
    error = expect(EnvironmentProblem, "refused owner/tiny", world.request())
    assert error.why == "HTTP 503"


def test_a_web_page_in_the_place_of_a_hub(world: World) -> None:
    world.hub.login_page = True
    error = expect(EnvironmentProblem, "does not answer like a Hugging Face hub", world.request())
    assert "login page" in error.fix


def test_a_hub_that_does_not_say_the_commit(world: World) -> None:
    world.repository.commit = ""
    expect(EnvironmentProblem, "does not say which commit", world.request())


def test_offline_the_local_hub_cache_answers(world: World) -> None:
    commit = hf.resolve(world.request()).identity
    world.fetch(world.request())
    world.hub.requests.clear()
    offline = world.request(environ={"HF_HUB_OFFLINE": "1"})
    assert hf.resolve(offline).identity == commit
    assert names(world.fetch(offline, name="offline")) == set(MODEL_FILES)
    assert world.hub.requests == []


def test_offline_with_nothing_cached_is_one_clear_error(world: World) -> None:
    error = expect(EnvironmentProblem, "is not in the local hub cache", world.request(environ={"TRTX_OFFLINE": "1"}))
    assert "hf download owner/tiny" in error.fix
    assert world.hub.requests == []


def test_offline_with_a_part_cached_says_so(world: World) -> None:
    hf.resolve(world.request())  # brings config.json only
    offline = world.request(environ={"HF_HUB_OFFLINE": "1"})
    expect(EnvironmentProblem, "may hold only a part of owner/tiny", offline)


def test_a_dataset_gives_its_split_and_the_validation_split_beside_it(world: World) -> None:
    files = {f"data/{split}-00000-of-00001.parquet": split.encode() for split in ("train", "validation", "test")}
    world.hub.repositories["datasets/owner/news"] = Repository(files, commit_of("news"))
    request = world.request("hf://owner/news", kind="dataset", split="train")
    resolved = hf.resolve(request)
    assert (resolved.identity, resolved.config) == (commit_of("news"), {})
    output = world.fetch(request, resolved.identity)
    assert names(output) == {"data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"}


def test_a_dataset_in_several_parts_asks_which(world: World) -> None:
    files = {f"{part}/train.jsonl": b"{}" for part in ("1.0.0", "2.0.0")}
    world.hub.repositories["datasets/owner/news"] = Repository(files, commit_of("news"))
    error = expect(UsageProblem, "has several parts", world.request("hf://owner/news", kind="dataset", split="train"))
    assert "hf://owner/news/2.0.0" in error.fix
    request = world.request("hf://owner/news/2.0.0", kind="dataset", split="train")
    assert names(world.fetch(request, commit_of("news"))) == {"train.jsonl"}


def test_a_split_that_is_not_there(world: World) -> None:
    world.hub.repositories["datasets/owner/news"] = Repository({"train.jsonl": b"{}"}, commit_of("news"))
    error = expect(UsageProblem, "has no split 'tran'", world.request("hf://owner/news", kind="dataset", split="tran"))
    assert "train" in error.fix
