"""The lock as users meet it: a branch that moves, a mirror that was tampered with, a machine without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hub import Hub, Repository, commit_of, serve_hub
from support.project import Project
from support.registry import digest_of, make_index, serve_registry
from unit.sources.conftest import MODEL_FILES

FIRST, SECOND = commit_of("first"), commit_of("second")
ROWS = "".join(json.dumps({"text": f"row {number} of the texts"}) + "\n" for number in range(30)).encode()
UNTIL = ("--until", "dataset")


@pytest.fixture(scope="module")
def running_hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    """A hub with a model and a dataset."""
    running_hub.reset()
    running_hub.repositories["models/owner/tiny"] = Repository(dict(MODEL_FILES))
    running_hub.repositories["datasets/owner/texts"] = Repository({"train.jsonl": ROWS})
    return running_hub


@pytest.fixture
def on_hub(project: Project, hub: Hub) -> Project:
    """A project with a recipe whose model and texts are on the hub."""
    environ = {**project.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(project.folder / "hf")}
    mine = Project(project.folder, environ)
    write_recipe(mine)
    return mine


def write_recipe(project: Project, **changes: Any) -> None:
    calibration = {"dataset": "hf://owner/texts", "samples": 8, "heldout": 4}
    recipe = {
        "schema": "trtx/v1",
        "name": "small",
        "model": {"source": "hf://owner/tiny", **changes.pop("model", {})},
        "quantization": {"fp32": {"algorithm": "none", "calibration": calibration | changes.pop("calibration", {})}},
        "targets": {"cpu": {"gpu": "cpu"}},
        "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
        **changes,
    }
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def lock_file(project: Project) -> Path:
    return project.folder / "recipe.lock.yaml"


def read(project: Project) -> Any:
    return yaml.safe_load(lock_file(project).read_text())


def portable(project: Project) -> str:
    """The lock less the keys of packages, which change with trtx's own sources, as they do while it is developed."""
    lines = lock_file(project).read_text().splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith("package/"))


def steps_of(result: Any) -> set[str]:
    """Names of what `trtx lock` changed."""
    return {change["name"] for change in result["changes"]}


def move_branch(hub: Hub) -> None:
    """`main` names another commit with another config; the first commit stays reachable by its name."""
    old = hub.repositories["models/owner/tiny"]
    hub.repositories["models/owner/tiny"] = Repository(dict(old.files), commit=SECOND, references=("main",))


def forget_hub_cache(project: Project) -> None:
    """What huggingface_hub keeps, so that only trtx's own cache is left."""
    (project.folder / "hf").rename(project.folder / f"hf-{len(list(project.folder.iterdir()))}")


def identity(project: Project) -> str:
    plan = project.json("plan", "recipe.yaml", "--until", "download")
    return str(plan["steps"][0]["params"]["identity"])


def test_apply_makes_a_lock_and_stays_on_its_commit_when_the_branch_moves(on_hub: Project, hub: Hub) -> None:
    done = on_hub.trtx("apply", "recipe.yaml", *UNTIL)
    assert done.returncode == 0, done.stderr
    assert "wrote recipe.lock.yaml, which pins what the recipe leaves open: commit it" in done.stderr
    text = portable(on_hub)
    assert read(on_hub)["models"]["hf://owner/tiny@main"]["identity"] == FIRST
    move_branch(hub)
    hub.requests.clear()
    assert identity(on_hub) == FIRST
    assert on_hub.trtx("apply", "recipe.yaml", *UNTIL).returncode == 0
    assert hub.requests == [], "what is pinned and in the cache is not asked for"
    assert portable(on_hub) == text


def test_upgrading_the_model_takes_the_new_commit_and_changes_only_its_lines(on_hub: Project, hub: Hub) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    before = portable(on_hub).splitlines()
    move_branch(hub)
    assert steps_of(on_hub.json("lock", "recipe.yaml")) <= {"package/cpu/fp32"}
    assert on_hub.trtx("lock", "recipe.yaml", "--upgrade", "model", "--check").returncode == 7
    done = on_hub.trtx("lock", "recipe.yaml", "--upgrade", "model")
    assert f"model hf://owner/tiny@main: identity {FIRST[:12]}… → {SECOND[:12]}…" in done.stderr
    assert identity(on_hub) == SECOND
    after = portable(on_hub).splitlines()
    changed = [line for line, old in zip(after, before, strict=True) if line != old]
    names = {line.split(":")[0].strip() for line in changed}
    # No build: it does not depend on a model's weights.
    assert names == {"identity", "calibrate/fp32", "convert/cpu/fp32", "download/model"}


def test_a_lock_has_the_digest_of_every_file_and_the_rows_that_were_drawn(on_hub: Project, hub: Hub) -> None:
    assert on_hub.json("lock", "recipe.yaml")["created"]
    lock = read(on_hub)
    files = lock["models"]["hf://owner/tiny@main"]["files"]
    assert {name: file["bytes"] for name, file in files.items()} == {n: len(c) for n, c in MODEL_FILES.items()}
    draw = lock["datasets"]["hf://owner/texts@main#train"]["draws"]["text, 8+4 rows, seed 7"]
    assert draw["rows"]["calibration"]["count"] == 8
    assert draw["rows"]["heldout"]["count"] == 4
    assert set(draw["files"]) == {"calibration.jsonl", "heldout.jsonl", "rows.json"}
    assert str(on_hub.folder) not in lock_file(on_hub).read_text()
    again = on_hub.json("lock", "recipe.yaml")
    assert (again["schema"], again["created"]) == ("trtx.lock-result/v1", False)
    assert steps_of(again) <= {"package/cpu/fp32"}


def test_the_same_facts_give_the_same_bytes_in_another_cache(on_hub: Project, tmp_path: Path) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    text = portable(on_hub)
    lock_file(on_hub).unlink()
    assert on_hub.trtx("lock", "recipe.yaml", TRTX_CACHE_DIR=str(tmp_path / "other")).returncode == 0
    assert portable(on_hub) == text


def test_locked_needs_a_lock_that_says_the_same(on_hub: Project, hub: Hub) -> None:
    missing = on_hub.trtx("apply", "recipe.yaml", "--locked", *UNTIL)
    assert (missing.returncode, "there is no lock" in missing.stderr) == (7, True)
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    move_branch(hub)
    assert on_hub.trtx("apply", "recipe.yaml", "--locked", *UNTIL).returncode == 0
    hub.repositories["models/owner/tiny"].references = ("main", "v2")
    write_recipe(on_hub, model={"revision": "v2"})
    for verb in ("plan", "apply"):
        refused = on_hub.trtx(verb, "recipe.yaml", "--locked", *UNTIL)
        assert refused.returncode == 7
        assert "model hf://owner/tiny@v2 was not in the lock" in refused.stderr
        assert "model hf://owner/tiny@main is not used any more" in refused.stderr
    assert on_hub.trtx("apply", "recipe.yaml", *UNTIL).returncode == 0, "without --locked the lock follows the recipe"
    assert on_hub.trtx("plan", "recipe.yaml", "--locked").returncode == 0


def test_locked_names_tools_and_stages_that_changed(on_hub: Project) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    lock = read(on_hub)
    lock["runners"]["local"]["distributions"]["torch"] = "1.0"
    lock["stages"]["calibrate"] = 99
    lock_file(on_hub).write_text(yaml.safe_dump(lock))
    refused = on_hub.trtx("plan", "recipe.yaml", "--locked")
    assert refused.returncode == 7
    assert "tools local: distributions torch 1.0 → " in refused.stderr
    assert "stage calibrate: code 99 → " in refused.stderr
    checked = on_hub.trtx("lock", "recipe.yaml", "--check", "-o", "json")
    assert checked.returncode == 7
    assert len(json.loads(checked.stdout)["changes"]) == 2


def test_what_is_measured_on_another_machine_does_not_make_a_lock_out_of_date(on_hub: Project) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    lock = read(on_hub)
    lock["entries"]["package/cpu/fp32"] = "0" * 64
    lock_file(on_hub).write_text(yaml.safe_dump(lock))
    assert on_hub.trtx("plan", "recipe.yaml", "--locked").returncode == 0


def test_changed_settings_are_not_written_to_the_lock_and_not_held_against_it(on_hub: Project) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    text = portable(on_hub)
    change = ("--set", "engine.limits.max_batch_size=4")
    assert on_hub.trtx("apply", "recipe.yaml", *UNTIL, *change).returncode == 0
    assert portable(on_hub) == text
    assert on_hub.trtx("plan", "recipe.yaml", "--locked", *change).returncode == 0
    other = on_hub.trtx("plan", "recipe.yaml", "--locked", "--set", "model.revision=" + FIRST)
    assert other.returncode == 7


def test_offline_nothing_is_asked(on_hub: Project, hub: Hub) -> None:
    unpinned = on_hub.trtx("plan", "recipe.yaml", "--offline")
    assert unpinned.returncode == 6
    assert "download/model needs the network, which may not be used" in unpinned.stderr
    assert "trtx lock" in unpinned.stderr
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    forget_hub_cache(on_hub)
    hub.requests.clear()
    assert on_hub.trtx("apply", "recipe.yaml", "--offline", "--locked", *UNTIL).returncode == 0
    for variable in ("TRTX_OFFLINE", "HF_HUB_OFFLINE"):
        assert on_hub.trtx("plan", "recipe.yaml", **{variable: "1"}).returncode == 0
    write_recipe(on_hub, calibration={"samples": 9})
    refused = on_hub.trtx("plan", "recipe.yaml", "--offline")
    assert refused.returncode == 6
    assert "download/texts needs the network" in refused.stderr
    assert hub.requests == []


def test_offline_a_commit_needs_no_lock(on_hub: Project, hub: Hub) -> None:
    write_recipe(on_hub, model={"revision": FIRST}, calibration={"revision": FIRST})
    assert on_hub.trtx("apply", "recipe.yaml", *UNTIL).returncode == 0
    lock_file(on_hub).unlink()
    forget_hub_cache(on_hub)
    hub.requests.clear()
    assert on_hub.trtx("plan", "recipe.yaml", "--offline", *UNTIL).returncode == 0
    assert hub.requests == []


def test_a_mirror_that_gives_other_bytes_for_the_commit_is_found_out(on_hub: Project, hub: Hub, tmp_path: Path) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    text = portable(on_hub)
    # The mirror lies about the digest, too: the commit is the same, and everything it says fits together.
    hub.repositories["models/owner/tiny"].files["model.safetensors"] = b"tampered with" * 99
    elsewhere = {"TRTX_CACHE_DIR": str(tmp_path / "fresh"), "HF_HOME": str(tmp_path / "hf")}
    done = on_hub.trtx("apply", "recipe.yaml", *UNTIL, **elsewhere)
    assert done.returncode == 8, done.stderr
    assert "download/model: model.safetensors is not what the lock says" in done.stderr
    assert not list((tmp_path / "fresh" / "entries").glob("*/*/output/model.safetensors"))
    assert portable(on_hub) == text


def test_a_cache_that_has_other_bytes_than_the_lock_is_not_used(on_hub: Project) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    lock = read(on_hub)
    lock["models"]["hf://owner/tiny@main"]["files"]["tokenizer.json"]["sha256"] = "0" * 64
    lock_file(on_hub).write_text(yaml.safe_dump(lock))
    for verb in ("plan", "apply", "lock"):
        done = on_hub.trtx(verb, "recipe.yaml")
        assert done.returncode == 8, (verb, done.stderr)
        assert "tokenizer.json is not what the lock says" in done.stderr


def test_a_damaged_lock_is_never_ignored(on_hub: Project) -> None:
    lock_file(on_hub).write_text("schema: trtx.lock/v1\nmodels: {hf://owner/tiny@main: main}\n")
    for arguments in (("plan", "recipe.yaml"), ("apply", "recipe.yaml"), ("lock", "recipe.yaml", "--check")):
        done = on_hub.trtx(*arguments)
        assert done.returncode == 2
        assert "recipe.lock.yaml was edited by hand or damaged" in done.stderr


def test_a_failed_apply_locks_what_it_found_out(on_hub: Project, hub: Hub) -> None:
    hub.repositories["datasets/owner/texts"].files["train.jsonl"] = b'{"other": "column"}\n'
    done = on_hub.trtx("apply", "recipe.yaml", "--keep-going", *UNTIL)
    assert done.returncode == 2
    lock = read(on_hub)
    assert set(lock["models"]["hf://owner/tiny@main"]["files"]) == set(MODEL_FILES)
    assert (
        "draws" not in lock["datasets"]["hf://owner/texts@main#train"]
        or not lock["datasets"]["hf://owner/texts@main#train"]["draws"]
    )


def test_a_selection_updates_its_own_facts_and_keeps_the_others(on_hub: Project) -> None:
    targets = {"cpu": {"gpu": "cpu"}, "fast": {"gpu": "cpu-avx512"}}
    write_recipe(on_hub, targets=targets)
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    whole = read(on_hub)
    assert {"build/cpu/fp32", "build/fast/fp32"} <= set(whole["entries"])
    assert steps_of(on_hub.json("lock", "recipe.yaml:fast/*")) <= {"package/fast/fp32"}
    write_recipe(
        on_hub, targets=targets, engine={"limits": {"max_batch_size": 3, "max_num_tokens": 128, "max_seq_len": 128}}
    )
    assert on_hub.trtx("lock", "recipe.yaml:fast/*").returncode == 0
    changed = {step for step, key in read(on_hub)["entries"].items() if whole["entries"][step] != key}
    assert changed == {"build/fast/fp32", "package/fast/fp32"}, "the other target's stay"
    assert on_hub.trtx("plan", "recipe.yaml:fast/*", "--locked").returncode == 0
    assert on_hub.trtx("plan", "recipe.yaml", "--locked").returncode == 7


def test_a_base_image_is_pinned_by_digest_and_stays_until_it_is_upgraded(on_hub: Project) -> None:
    old, new = make_index("old"), make_index("new")
    with serve_registry() as registry:
        reference = f"{registry.address}/base:1.0"
        registry.manifests["base:1.0"] = old
        write_recipe(on_hub, package={"base": reference})
        assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
        registry.manifests["base:1.0"] = new
        registry.requests.clear()
        assert steps_of(on_hub.json("lock", "recipe.yaml")) <= {"package/cpu/fp32"}
        assert registry.requests == []
        plan = on_hub.json("plan", "recipe.yaml")
        assert plan["steps"][-1]["params"]["base"] == f"{reference}@{digest_of(old)}"
        assert on_hub.trtx("lock", "recipe.yaml", "--upgrade", "container").returncode == 0
        assert read(on_hub)["containers"] == {reference: {"digest": digest_of(new)}}
        registry.status = 503
        body = on_hub.json("lock", "recipe.yaml", "--upgrade", reference)
        assert "keeps its digest" in body["warnings"][0]
        assert steps_of(body) <= {"package/cpu/fp32"}


def test_an_unknown_pin_is_refused_where_there_is_no_lock_yet(on_hub: Project) -> None:
    done = on_hub.trtx("lock", "recipe.yaml", "--upgrade", "modle")
    assert done.returncode == 2 and "did you mean 'model'?" in done.stderr
    assert not lock_file(on_hub).exists()
    assert on_hub.trtx("lock", "recipe.yaml", "--upgrade", "model").returncode == 0


def test_an_unknown_pin_is_refused_with_those_there_are(on_hub: Project) -> None:
    assert on_hub.trtx("lock", "recipe.yaml").returncode == 0
    done = on_hub.trtx("lock", "recipe.yaml", "--upgrade", "modle")
    assert done.returncode == 2
    assert "did you mean 'model'?" in done.stderr
    assert "nothing changed" in on_hub.trtx("lock", "recipe.yaml", "--upgrade", "hf://owner/tiny").stderr
