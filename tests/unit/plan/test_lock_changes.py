"""What differs between two locks, in words."""

from __future__ import annotations

from typing import Any

from trtx.plan.lock import Lock
from trtx.plan.lock_changes import compare_locks

OLD, NEW = "a" * 64, "b" * 64


def lock(**facts: Any) -> Lock:
    return Lock.model_validate({"schema": "trtx.lock/v1", **facts})


def words(old: Lock | None, new: Lock) -> list[str]:
    return [str(change) for change in compare_locks(old, new)]


def model(identity: str, **files: str) -> dict[str, Any]:
    return {"identity": identity, "files": {name: {"bytes": 1, "sha256": sha256} for name, sha256 in files.items()}}


def test_equal_locks_have_no_differences() -> None:
    assert words(lock(stages={"build": 1}), lock(stages={"build": 1})) == []


def test_a_moved_branch_shows_both_commits() -> None:
    old, new = lock(models={"hf://o/n@main": model("a" * 40)}), lock(models={"hf://o/n@main": model("b" * 40)})
    assert words(old, new) == ["model hf://o/n@main: identity aaaaaaaaaaaa… → bbbbbbbbbbbb…"]


def test_another_revision_is_one_that_was_not_in_the_lock() -> None:
    old, new = lock(models={"hf://o/n@main": model("a")}), lock(models={"hf://o/n@v2": model("b")})
    assert words(old, new) == ["model hf://o/n@main is not used any more", "model hf://o/n@v2 was not in the lock"]


def test_a_file_is_one_difference_and_files_that_were_not_known_are_one() -> None:
    old, new = lock(models={"m": model("i", weights=OLD)}), lock(models={"m": model("i", weights=NEW)})
    assert words(old, new) == ["model m: files weights sha256:aaaaaaaaaaaa… → sha256:bbbbbbbbbbbb…"]
    new = lock(models={"m": model("i", weights=NEW, config=NEW)})
    assert words(lock(models={"m": model("i")}), new) == ["model m: files (2 of them), which the lock did not have"]


def test_tools_stages_and_steps_are_named_with_both_versions() -> None:
    tools = {"compiler": "g++ 12", "python": "3.11", "distributions": {"torch": "2.13.0"}}
    old = lock(runners={"local": tools}, stages={"calibrate": 1}, entries={"build/cpu/fp32": OLD})
    newer = {**tools, "distributions": {"torch": "2.14.0"}, "driver": "550.54"}
    new = lock(runners={"local": newer}, stages={"calibrate": 2}, entries={"build/cpu/fp32": NEW})
    assert words(old, new) == [
        "tools local: distributions torch 2.13.0 → 2.14.0",
        "tools local: driver 550.54, which the lock did not have",
        "stage calibrate: code 1 → 2",
        "step build/cpu/fp32: key aaaaaaaaaaaa… → bbbbbbbbbbbb…",
    ]


def test_a_benchmark_client_and_a_digest_that_became_known() -> None:
    old = lock(benchmark={"trtx": "0.1.0", "code": 1}, containers={"python:3.12": {}})
    new = lock(benchmark={"trtx": "0.2.0", "code": 1}, containers={"python:3.12": {"digest": f"sha256:{NEW}"}})
    assert words(old, new) == [
        "container python:3.12: digest sha256:bbbbbbbbbbbb…, which the lock did not have",
        "benchmark client: trtx 0.1.0 → 0.2.0",
    ]


def test_compile_choices_are_compared_and_a_builds_key_is_left_to_its_step() -> None:
    def build(key: str, threads: int) -> dict[str, Any]:
        return {
            "b": {"arch": "x", "key": key, "choices": {"settings": {"cpp.threads": threads, "max_autotune": False}}}
        }

    assert words(lock(builds=build(OLD, 8)), lock(builds=build(NEW, 8))) == []
    assert words(lock(builds=build(OLD, 8)), lock(builds=build(NEW, 4))) == [
        "build b: choices settings cpp.threads 8 → 4"
    ]


def test_without_an_old_lock_everything_is_new_and_some_steps_may_be_left_out() -> None:
    new = lock(stages={"build": 1}, entries={"benchmark/a": NEW, "build/a": NEW})
    assert [change.subject for change in compare_locks(None, new, {"benchmark/a"})] == ["stage build", "step build/a"]


def test_a_difference_as_json_has_both_values_whole() -> None:
    (change,) = compare_locks(lock(entries={"a": OLD}), lock(entries={"a": NEW}))
    assert change.to_json() == {
        "section": "entries",
        "name": "a",
        "part": "key",
        "old": OLD,
        "new": NEW,
        "text": "step a: key aaaaaaaaaaaa… → bbbbbbbbbbbb…",
    }
